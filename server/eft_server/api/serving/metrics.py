"""What /metrics tells of generations: how many by model name, weights, drafted and accepted tokens, and reports."""

from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

from prometheus_client import Counter, Histogram
from vllm.engine.protocol import EngineClient
from vllm.outputs import CompletionOutput, RequestOutput

from eft_server.api.serving.current import current
from eft_server.api.serving.guarded_engine import Guarded
from eft_server.behaviour.report import Report
from eft_server.behaviour.resolve import Resolved

__all__ = ["Counting"]

_REQUESTS = Counter("eft:requests", "Generations that were started, by requested model name.", ["model"])
# Bounds lie between tenths and beside 0 and 1: a quantile that is interpolated within a bucket is then about right.
_WEIGHT = Histogram(
    "eft:requested_weight",
    "Weight of each expert in the generations that were started, defaults filled in.",
    ["expert"],
    buckets=[-2, -1, -0.5, -0.05, *(odd / 20 for odd in range(1, 23, 2)), 1.5, 2.5, 5],
)
_SCALE = Histogram(
    "eft:requested_scale",
    "Scale of the generations that were started, defaults filled in.",
    buckets=[-1, -0.05, 0.05, 0.25, 0.5, 0.75, 0.95, 1.05, 1.25, 1.5, 2, 3, 5],
)
_DRAFTED = Counter(
    "eft:draft_tokens", "Tokens proposed in speculative decoding, by requested model name.", ["model"]
)
_ACCEPTED = Counter(
    "eft:accepted_tokens", "Proposed tokens that were accepted, by requested model name.", ["model"]
)
_CHANGED = Histogram(
    "eft:report_changed",
    "Share of a text's generated tokens whose likeliest choice is not the base's, by requested model name; of requests "
    "with eft.report.",
    ["model"],
    buckets=[0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1],
)
_KL = Histogram(
    "eft:report_kl",
    "Mean KL divergence from the base over a text's generated tokens, in nats, by requested model name; of requests "
    "with eft.report.",
    ["model"],
    buckets=[0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10],
)


class Counting:
    """An engine whose generations are counted; everything else is delegated.

    Args:
        engine: The engine.
        models: The names that requests can use.
        experts: The family's experts.
        heard: Called for each output.
    """

    def __init__(
        self,
        engine: EngineClient | Guarded,
        models: Iterable[str],
        experts: Iterable[str],
        heard: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._heard = heard
        # A rate sees the first one only where there was a 0 before.
        for model in models:
            _REQUESTS.labels(model)
        for expert in experts:
            _WEIGHT.labels(expert)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, *args: Any, **options: Any) -> AsyncGenerator[RequestOutput, None]:
        """Generate as the engine does, and count under the model that the current request names."""
        resolved, report = current().resolved, current().report
        outputs = self._engine.generate(*args, **options)
        model = _count_request(resolved) if resolved else ""
        return self._counted(outputs, model, report)

    async def _counted(
        self, outputs: AsyncGenerator[RequestOutput, None], model: str, report: Report | None
    ) -> AsyncGenerator[RequestOutput, None]:
        try:
            async for output in outputs:
                self._heard()
                for choice in output.outputs:
                    if choice.spec_decode_metrics is not None:
                        _count(choice.spec_decode_metrics, model)
                    if report is not None:
                        _report(choice, model, report)
                yield output
        finally:
            await outputs.aclose()


def _count_request(resolved: Resolved) -> str:
    """Count a request, and return the name that it is counted under: a family's, an alias's or a member's."""
    _REQUESTS.labels(resolved.served).inc()
    if not resolved.plain and resolved.own_coefficients is None:
        _SCALE.observe(resolved.scale)
        for expert, weight in resolved.weights.items():
            _WEIGHT.labels(expert).observe(weight)
    return resolved.served


def _count(metrics: Any, model: str) -> None:
    _DRAFTED.labels(model).inc(metrics.num_draft_tokens)
    _ACCEPTED.labels(model).inc(sum(accepted * steps for accepted, steps in enumerate(metrics.histogram)))


def _report(choice: CompletionOutput, model: str, report: Report) -> None:
    """Take the figures out of a text that is complete, where they arrive; vLLM's handlers would pass them on."""
    if choice.routed_experts is None:
        return
    own = Report()
    own.add(choice.routed_experts.tolist())
    choice.routed_experts = None
    report.add_report(own)
    if (fields := own.fields) is not None:
        _CHANGED.labels(model).observe(fields["changed"])
        if fields["kl"] is not None:
            _KL.labels(model).observe(fields["kl"])
