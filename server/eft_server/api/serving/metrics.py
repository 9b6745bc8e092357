"""Counters for /metrics, by model name: requests, and drafted and accepted tokens."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

from prometheus_client import Counter
from vllm.engine.protocol import EngineClient
from vllm.outputs import RequestOutput

from eft_server.api.serving.current import current
from eft_server.api.serving.guarded_engine import Guarded

__all__ = ["Counting"]

_REQUESTS = Counter("eft:requests", "Generations that were started, by requested model name.", ["model"])
_DRAFTED = Counter(
    "eft:draft_tokens", "Tokens proposed in speculative decoding, by requested model name.", ["model"]
)
_ACCEPTED = Counter(
    "eft:accepted_tokens", "Proposed tokens that were accepted, by requested model name.", ["model"]
)


class Counting:
    """An engine whose generations are counted; everything else is delegated.

    Args:
        engine: The engine.
        heard: Called for each of its outputs.
    """

    def __init__(self, engine: EngineClient | Guarded, heard: Callable[[], None]) -> None:
        self._engine = engine
        self._heard = heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, *args: Any, **options: Any) -> AsyncGenerator[RequestOutput, None]:
        """Generate as the engine does, and count under the current request's model name."""
        resolved = current().resolved
        model = resolved.served if resolved else ""
        outputs = self._engine.generate(*args, **options)
        _REQUESTS.labels(model).inc()
        return self._counted(outputs, model)

    async def _counted(
        self, outputs: AsyncGenerator[RequestOutput, None], model: str
    ) -> AsyncGenerator[RequestOutput, None]:
        try:
            async for output in outputs:
                self._heard()
                for choice in output.outputs:
                    if choice.spec_decode_metrics is not None:
                        _count(choice.spec_decode_metrics, model)
                yield output
        finally:
            await outputs.aclose()


def _count(metrics: Any, model: str) -> None:
    _DRAFTED.labels(model).inc(metrics.num_draft_tokens)
    _ACCEPTED.labels(model).inc(sum(accepted * steps for accepted, steps in enumerate(metrics.histogram)))
