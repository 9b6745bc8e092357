"""Reports: what differs from the base at a request's generated tokens, from rows that a step computes anyway.

A report costs the base's head, if it does not contribute to the row, and a comparison of two rows. The figures travel
beside the tokens that were sampled from those rows, in fields of vLLM's outputs that this server has no other use for:
`SamplerOutput.sampling_mask_tensors` and `ModelRunnerOutput.sampling_masks` from the worker to the scheduler, and
`routed_experts`, which vLLM adds up by sequence and cuts where it cuts the tokens, from there to the program. The
activations of scored requests (`activations`) travel the same way, beside the one token that such a request generates.

A row's two figures are whether its most likely id is another than the base's (0 or 1), and KL(row‖base) in nats. Shape
suffixes: R rows, N reporting ones among them, V the base's vocabulary, P requests, 2 figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.outputs import ModelRunnerOutput

from eft_server.engine.patches import overwrite


def compare(blended_NV: torch.Tensor, base_NV: torch.Tensor) -> torch.Tensor:
    """Compare blended rows with the base's logits over all of its ids, on CPUs; `v2.report_kernels` is for GPUs.

    Returns:
        float32 of shape (N, 2).
    """
    log_p_NV = blended_NV.log_softmax(dim=-1)
    log_q_NV = base_NV[:, : blended_NV.shape[-1]].float().log_softmax(dim=-1)
    changed_N = log_p_NV.argmax(dim=-1) != log_q_NV.argmax(dim=-1)
    return torch.stack([changed_N.float(), divergence(log_p_NV.exp(), log_p_NV, log_q_NV)], dim=-1)


def divergence(p_NV: torch.Tensor, log_p_NV: torch.Tensor, log_q_NV: torch.Tensor) -> torch.Tensor:
    """KL(p‖q) in nats, of shape (N,); an impossible token of p adds nothing. It overwrites log q."""
    terms_NV = log_q_NV.neg_().add_(log_p_NV).mul_(p_NV)
    return torch.where(p_NV == 0, 0.0, terms_NV).sum(dim=-1).clamp(min=0)


@dataclass(frozen=True)
class ReportingRows:
    """The rows of a step's samples that are compared.

    Attributes:
        rows_R: bool; which ones.
        requests: of each request with such rows its id, its place in the batch, and its number of rows, in order.
    """

    rows_R: np.ndarray
    requests: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(
        cls, req_ids: Sequence[str], reporting_P: np.ndarray, counts_P: Sequence[int] | np.ndarray
    ) -> "ReportingRows | None":
        """Choose the rows of some requests; None if there are none.

        Args:
            req_ids: the batch.
            reporting_P: bool; which requests report.
            counts_P: the number of rows of each.
        """
        if not reporting_P.any():
            return None
        places = np.flatnonzero(reporting_P).tolist()
        requests = tuple((req_ids[place], place, int(counts_P[place])) for place in places)
        return cls(reporting_P.repeat(counts_P), requests)

    def by_request(self, figures_N2: np.ndarray, sampled_P: Sequence[int]) -> dict[str, np.ndarray]:
        """The figures of the tokens that were taken, by request: not of rows behind a rejected draft.

        Args:
            figures_N2: float32, of all these rows.
            sampled_P: the number of tokens taken from each request of the batch.
        """
        found, start = {}, 0
        for req_id, place, rows in self.requests:
            found[req_id] = figures_N2[start : start + min(rows, sampled_P[place])].copy()
            start += rows
        return found


@dataclass(frozen=True)
class StepFigures:
    """The figures of a step on their way to the host: they stand in for vLLM's `SamplingMaskTensors`.

    Attributes:
        figures_N2: of the reporting rows, if there are any.
        rows: those rows.
        others: further arrays by request, for its only token: of shape (1, …).
    """

    figures_N2: torch.Tensor | None
    rows: ReportingRows | None
    others: Mapping[str, torch.Tensor | np.ndarray]

    def to_cpu_nonblocking(self) -> "StepFigures":
        """Start the copies, which the event of the step's other copies covers."""
        figures = None if self.figures_N2 is None else self.figures_N2.to("cpu", non_blocking=True)
        others = {
            req_id: array.to("cpu", non_blocking=True) if isinstance(array, torch.Tensor) else array
            for req_id, array in self.others.items()
        }
        return StepFigures(figures, self.rows, others)

    def tolists(self, sampled_P: np.ndarray | Sequence[int]) -> dict[str, np.ndarray]:
        """The figures by request, after that event."""
        found = {req_id: np.asarray(array) for req_id, array in self.others.items()}
        if self.rows is not None and self.figures_N2 is not None:
            found |= self.rows.by_request(self.figures_N2.numpy(), [int(count) for count in sampled_P])
        return found


def attach_figures(output: ModelRunnerOutput, figures: Mapping[str, np.ndarray]) -> None:
    """Send figures with a worker's output, as vLLM does with those of Model Runner V2."""
    overwrite(output, "sampling_masks", figures)


def pass_figures_on(output: ModelRunnerOutput, outputs: Sequence[EngineCoreOutput]) -> None:
    """Move the figures of a worker's output to the requests' outputs, for the tokens that these keep."""
    figures: Any = output.sampling_masks
    for one in outputs if figures else ():
        own = figures.get(one.request_id)
        if own is not None:
            overwrite(one, "routed_experts", own[: len(one.new_token_ids)])
