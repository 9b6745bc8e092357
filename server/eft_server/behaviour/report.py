"""What a request's generated tokens tell of the experts' work, added up: the report in an answer's object `eft`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Report"]


@dataclass
class Report:
    """The sums over generated tokens.

    Attributes:
        choices: How many texts are generated.
        tokens: The tokens so far.
        changed: At how many of their positions the likeliest token is not the base's.
        kl: The sum of KL(composite‖base) over their positions, in nats.
    """

    choices: int = 0
    tokens: int = 0
    changed: int = 0
    kl: float = 0.0

    def add(self, figures: Iterable[tuple[float, float]]) -> None:
        """Add tokens: of each, whether it counts as changed (0 or 1), and its divergence."""
        for changed, kl in figures:
            self.tokens += 1
            self.changed += bool(changed)
            self.kl += kl

    def add_report(self, other: "Report") -> None:
        """Add the tokens of another report."""
        self.tokens += other.tokens
        self.changed += other.changed
        self.kl += other.kl

    @property
    def fields(self) -> dict[str, Any] | None:
        """As in an answer; None if no token was generated. A divergence that is infinite is None."""
        if not self.tokens:
            return None
        kl = self.kl / self.tokens
        return {
            "tokens": self.tokens,
            "changed": self.changed / self.tokens,
            "kl": kl if math.isfinite(kl) else None,
        }
