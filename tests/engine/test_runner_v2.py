"""What Model Runner V2 is measured with before its KV cache is sized, and which runner GPUs may have."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1
from vllm.v1.worker.gpu_worker import Worker

from eft_server.engine.message import Explaining
from eft_server.engine.worker.v1.runner import EftGPUWorker
from eft_server.engine.worker.v2 import runner as runner_v2
from eft_server.engine.worker.v2.runner import EftModelState, EftRunner

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(("requests", "drafts", "rows"), [(128, 0, 1024), (1024, 0, 1024), (1024, 3, 4096)])
def test_memory_is_measured_with_the_most_that_a_step_may_ask_for(
    requests: int, drafts: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filters on every row, all members, as many rows as drafts bring, reports, a prompt's rows, a chunk of scores."""
    asked: list[tuple[str, int, bool]] = []
    usual: list[list[list[bool]]] = []
    reported: list[tuple[int, bool]] = []
    state: Any = EftModelState.__new__(EftModelState)
    state._of_step, state._of_samples = ((True,) * 3, False), None
    names, defaults = ("base", "ref", "a"), (1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    state._manifest = SimpleNamespace(names=names, width=len(defaults), defaults=defaults)

    def compute_logits(hidden_RC: torch.Tensor) -> None:
        needs = state.needs(len(hidden_RC))
        if state._of_samples is not None:
            usual.append(needs.counting_RM.tolist())
            if needs.reporting_R is not None:
                reported.append((int(needs.reporting_R.sum()), bool(needs.filtered_R.all())))
            return
        assert needs.counting_RM.all()
        asked.append(("logits", len(hidden_RC), bool(needs.filtered_R.all())))

    def prompts(targets_R: torch.Tensor, hidden_RC: torch.Tensor, logits: Any, _count: int) -> None:
        assert len(targets_R) == len(hidden_RC)
        logits(hidden_RC)

    def score(hidden_RC: torch.Tensor, vectors: Any, targets_R: torch.Tensor) -> None:
        asked.append(("score", len(hidden_RC), False))

    def explain(hidden_RC: torch.Tensor, vectors: Any, targets_R: torch.Tensor, about: Explaining) -> None:
        assert vectors[about.base] == (1.0, *(0.0,) * 7)
        asked.append(("explain", len(hidden_RC), False))

    monkeypatch.setattr(
        GPUModelRunner, "_dummy_sampler_run", lambda *_: asked.append(("vllm", requests, False))
    )
    monkeypatch.setattr(runner_v2, "compute_prompt_logprobs_with_chunking", prompts)
    runner: Any = EftRunner.__new__(EftRunner)
    runner.max_num_reqs, runner.decode_query_len, runner.device = requests, 1 + drafts, torch.device("cpu")
    runner.model_state = state
    runner.model = SimpleNamespace(
        columns_TC=torch.zeros((10_000, 1)),
        names=names,
        vocabulary=152_064,
        compute_logits=compute_logits,
        score=score,
        explain=explain,
        blender=SimpleNamespace(take_figures=lambda: None),
    )
    runner._dummy_sampler_run(torch.zeros((requests, 1)))
    assert asked == [
        ("vllm", requests, False),
        ("logits", rows, True),
        ("logits", rows, True),
        ("score", 256, False),
        ("explain", 98, False),  # Of three members' logits, and six more rows of floats each.
    ]
    for rows_alike in ([True, False, False], [False, False, True], [True, True, True]):
        assert [rows_alike, rows_alike] in usual, "its kernels are compiled before requests wait for them"
    assert [[True, False, False], [True, True, True]] in usual
    assert reported == [(requests * (1 + drafts), True), (2, False), (1, False)]
    assert not state.needs(1).filtered_R.any(), "requests are not measured"


def test_gpus_are_refused_model_runner_v1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graphs are of the whole composite, and would run everybody on everything."""
    worker: Any = EftGPUWorker.__new__(EftGPUWorker)
    worker.model_runner = RunnerV1.__new__(RunnerV1)
    monkeypatch.setattr(Worker, "init_device", lambda _: None)
    with pytest.raises(RuntimeError, match="unset VLLM_USE_V2_MODEL_RUNNER"):
        worker.init_device()
