"""Our figures beside those that vLLM's own `bench serve` computes from the same observations."""

import random

import pytest
from vllm.benchmarks import serve

from eft_client.load.records import Record
from eft_client.load.statistics.measures import LATENCIES, measure

from .made import record

LIMITS = {"ttft_ms": 120.0, "tpot_ms": 30.0, "e2e_ms": 700.0}


def observed(chance: random.Random) -> Record:
    """A request of up to 20 pieces, each of one token or more."""
    sent = chance.uniform(0, 5000)
    times = [sent + chance.uniform(20, 200)]
    for _ in range(chance.randrange(0, 20)):
        times.append(times[-1] + chance.expovariate(1 / 25))
    tokens = len(times) + chance.randrange(0, 2) * (len(times) > 1)
    end = times[-1] + 1
    counts = {"prompt_tokens": chance.randrange(1, 100), "output_tokens": tokens}
    return record(scheduled_ms=sent, sent_ms=sent, chunks_ms=tuple(times), end_ms=end, **counts)


def as_vllm_saw_it(one: Record):
    return serve.RequestFuncOutput(
        success=True,
        latency=one.e2e_ms / 1000,
        output_tokens=one.tokens,
        ttft=one.ttft_ms / 1000,
        itl=[gap / 1000 for gap in one.itl_ms],
        prompt_len=one.prompt_tokens,
        start_time=one.sent_ms / 1000,
    )


def test_figures_are_those_of_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(0)
    records = [observed(chance) for _ in range(150)]
    ours = measure(records, LIMITS)
    limits = {{"e2e_ms": "e2el"}.get(name, name[:-3]): limit for name, limit in LIMITS.items()}
    outputs = [as_vllm_saw_it(one) for one in records]
    theirs, _ = serve.calculate_metrics(outputs, outputs, ours["duration_s"], None, [50, 90, 99], limits)
    assert ours["completed"] == theirs.completed
    assert ours["requests_per_s"] == pytest.approx(theirs.request_throughput)
    assert 0 < ours["goodput_per_s"] == pytest.approx(theirs.request_goodput)
    assert ours["output_tokens_per_s"] == pytest.approx(theirs.output_throughput)
    assert ours["total_tokens_per_s"] == pytest.approx(theirs.total_token_throughput)
    for name in LATENCIES:
        vllm_s = {"e2e_ms": "e2el_ms"}.get(name, name)
        assert ours[f"{name}_mean"] == pytest.approx(getattr(theirs, f"mean_{vllm_s}"))
        for percent, value in getattr(theirs, f"percentiles_{vllm_s}"):
            assert ours[f"{name}_p{percent}"] == pytest.approx(value)
