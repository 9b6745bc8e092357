"""TRL's trainers over examples that are token ids already, and the one loss that TRL does not have."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from typing_extensions import override

from eft_train.data.tokens import Tokenised
from eft_train.recipe import ARM, SFT, Phase

__all__ = ["IGNORED", "pair_rows", "text_rows", "text_trainer", "trainer_of"]

IGNORED = -100
"""The label of a token that is not learnt."""


class PairTrainer(DPOTrainer):  # type: ignore[misc] # TRL has no types.
    """DPO on pairs of token ids, which need no preparation."""

    @override
    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


class ArmTrainer(PairTrainer):
    """GenARM's loss, -log sigmoid(β · (log p(chosen) - log p(rejected))): DPO's, with a reference that is always 0."""

    @override
    def compute_ref_log_probs(self, model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The reference's log-probabilities of a batch's answers."""
        zeros = torch.zeros(len(inputs["input_ids"]) // 2, device=inputs["input_ids"].device)
        return zeros, zeros


def text_rows(examples: Sequence[Tokenised], answers: str) -> Dataset:
    """One row for each text that is learnt: the prompt with the chosen answer, or with either."""
    texts = [
        (example.prompt, answer)
        for example in examples
        for answer in (example.chosen, example.rejected if answers == "both" else None)
        if answer is not None
    ]
    return Dataset.from_dict(
        {
            "input_ids": [_compact([*prompt, *answer]) for prompt, answer in texts],
            "labels": [_compact([*[IGNORED] * len(prompt), *answer]) for prompt, answer in texts],
        }
    )


def pair_rows(examples: Sequence[Tokenised]) -> Dataset:
    """One row for each pair."""
    return Dataset.from_dict(
        {
            "prompt_ids": [_compact(example.prompt) for example in examples],
            "chosen_ids": [_compact(example.chosen) for example in examples],
            "rejected_ids": [_compact(example.rejected or ()) for example in examples],
        }
    )


def _compact(ids: Sequence[int]) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    """Ids in four bytes each, where a list takes nine times as much."""
    return np.array(ids, dtype=np.int32)


def trainer_of(
    phase: Phase,
    examples: Sequence[Tokenised],
    options: dict[str, Any],
    models: dict[str, Any],
    callback: TrainerCallback,
) -> SFTTrainer | DPOTrainer:
    """A phase's trainer.

    Args:
        phase: The phase.
        examples: What to learn from, within the phase's length.
        options: Options of `TrainingArguments`.
        models: `model`, `processing_class`, and as it is needed `peft_config` or `ref_model`.
        callback: What watches it.
    """
    if phase.loss == SFT:
        return text_trainer(text_rows(examples, phase.answers), options, models, callback)
    is_arm = phase.loss == ARM
    arguments = DPOConfig(
        **options,
        max_length=None,
        beta=phase.beta,
        loss_type="sigmoid" if is_arm else phase.loss,
        precompute_ref_log_probs=is_arm,
    )
    kind = ArmTrainer if is_arm else PairTrainer
    trainer = kind(args=arguments, train_dataset=pair_rows(examples), callbacks=[callback], **models)
    trainer.remove_callback(PrinterCallback)
    return trainer


def text_trainer(
    rows: Dataset,
    options: dict[str, Any],
    models: dict[str, Any],
    callback: TrainerCallback,
    kind: type[SFTTrainer] = SFTTrainer,
) -> SFTTrainer:
    """A trainer of texts: token ids, and as labels those that are learnt, `IGNORED` elsewhere.

    Args:
        rows: `input_ids` and `labels`.
        options: Options of `TrainingArguments`.
        models: `model`, `processing_class`, and `peft_config` for a new adapter.
        callback: What watches it.
        kind: The trainer's class.
    """
    arguments = SFTConfig(**options, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    trainer = kind(args=arguments, train_dataset=rows, callbacks=[callback], **models)
    trainer.remove_callback(PrinterCallback)
    return trainer
