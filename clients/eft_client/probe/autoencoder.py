"""The codes of a sparse autoencoder, trained with sae-lens on a member's activations at one layer.

Targets play no part in it, so it is trained once, on all tokens that were kept.

Source: Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093) for TopK; Marks et al.
(arXiv 2310.08164) for probing codes.

Shape suffixes: T tokens, H hidden, N features of the code.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ACTIVE", "PASSES", "WIDTH", "codes_of"]

WIDTH = 2
"""Features of the code for each number of an activation; Marks et al. took 1 and 2."""

ACTIVE = 32
"""Features that are not 0 in a token's code, at most a quarter of all."""

PASSES = 20
_BATCH, _RATE = 256, 1e-3


def codes_of(states_TH: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Train an autoencoder on activations, and encode them: [T, N]."""
    import torch
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig  # type: ignore[import-not-found]
    from sae_lens.config import SAETrainerConfig  # type: ignore[import-not-found]

    centred_TH = states_TH - states_TH.mean(axis=0)
    scale = np.sqrt(np.square(centred_TH).mean()) or 1.0
    inputs_TH = torch.tensor(centred_TH / scale, dtype=torch.float32)
    tokens, hidden = inputs_TH.shape
    batch = min(_BATCH, tokens)
    with torch.random.fork_rng(), contextlib.redirect_stderr(io.StringIO()):  # its bar would break ours
        torch.manual_seed(seed)
        features = WIDTH * hidden
        config = TopKTrainingSAEConfig(d_in=hidden, d_sae=features, k=min(ACTIVE, features // 4))
        trainer = SAETrainer(
            cfg=SAETrainerConfig(
                total_training_samples=PASSES * tokens,
                train_batch_size_samples=batch,
                lr=_RATE,
                lr_end=_RATE,
            ),
            sae=TopKTrainingSAE(config),
            data_provider=_batches(inputs_TH, batch, seed),
        )
        encoder = trainer.fit()
        with torch.no_grad():
            codes: NDArray[np.float64] = encoder.encode(inputs_TH).numpy().astype(np.float64)
    return codes


def _batches(inputs_TH: "Tensor", batch: int, seed: int) -> Iterator["Tensor"]:
    """Shuffled batches without end."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(inputs_TH), generator=generator)
        for start in range(0, len(order) - batch + 1, batch):
            yield inputs_TH[order[start : start + batch]]
