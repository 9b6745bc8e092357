"""How long and how fast to train, and where progress goes."""

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, float], None]  # steps done, loss of the last one in nats per token


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; ``rate`` is the peak learning rate."""

    steps: int
    rows: int
    rate: float
    warmup: float = 0.05  # share of the steps

    def factor(self, step: int) -> float:
        """The share of the peak rate to use at a step: a linear rise, then a linear fall to zero."""
        rise = (step + 1) / max(1.0, self.warmup * self.steps)
        fall = (self.steps - step) / self.steps
        return min(rise, fall)
