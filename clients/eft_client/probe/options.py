"""The options of `eft probe`; every mistake that can be seen in them is found before anything starts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from eft_client.pairs.pair import Pair, read_pairs
from eft_client.probe.demo_pairs import demo_pairs
from eft_client.probe.errors import ProbeError
from eft_client.probe.examples import TARGETS, Examples

__all__ = ["ProbeOptions"]

MAX_OVER = 16
_DEMO = re.compile(r"demo(?::([1-9]\d{0,5}))?")
_DEMO_SIZE = 300


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """The command's options, as they were given; `eft probe --help` says what each means.

    Raises:
        ProbeError: One of them cannot be right.
    """

    family: str | None = None
    data: str
    output: Path
    target: Sequence[str] = ()
    limit: int = 2000
    end: bool = True
    expert: str | None = None
    layers: str = "all"
    site: str = "residual"
    pool: str | None = None
    max_tokens: int = 5000
    over: str | None = None
    autoencoder: bool = False
    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    overrides: Sequence[str] = ()
    folds: int = 5
    shuffles: int = 20
    repeats: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family is None and self.url is None:
            raise ProbeError("neither a family nor --url; give a family file, or the URL of a running server")
        if self.autoencoder and self.pool == "last":
            raise ProbeError("--pool last: an autoencoder's codes are averaged over tokens; leave --pool out")
        if self.autoencoder and find_spec("sae_lens") is None:
            raise ProbeError("--autoencoder needs sae-lens: pip install 'eft-server[sae]'")
        _ = self.asked_layers, self.weights

    @cached_property
    def examples(self) -> Examples:
        """The data, with what each target needs.

        Raises:
            ProbeError: It has not.
            PairsError: It cannot be read.
        """
        examples = Examples.of(self._pairs[: self.limit], end=self.end)
        for target in self.target:
            examples.require(target)
        return examples

    @property
    def unused(self) -> int:
        """The number of lines behind the limit."""
        return max(0, len(self._pairs) - self.limit)

    @cached_property
    def _pairs(self) -> Sequence[Pair]:
        pairs = self._demo()
        return read_pairs(Path(self.data)) if pairs is None else pairs

    def _demo(self) -> list[Pair] | None:
        found = _DEMO.fullmatch(self.data)
        if found is None or Path(self.data).exists():
            return None
        if self.expert is None:
            raise ProbeError("--data demo needs --expert: its pairs are in the manner of that expert")
        return demo_pairs(self.expert, int(found[1] or _DEMO_SIZE), seed=self.seed)

    @cached_property
    def targets(self) -> Sequence[str]:
        """Those asked for, each once; by default what the data is for."""
        return list(dict.fromkeys(self.target)) or [self.examples.default_target]

    @cached_property
    def asked_layers(self) -> tuple[int, ...] | None:
        """The layers; None means all.

        Raises:
            ProbeError: They are no numbers.
        """
        if self.layers == "all":
            return None
        try:
            return tuple(dict.fromkeys(int(layer) for layer in self.layers.split(",")))
        except ValueError:
            raise ProbeError(f"--layers {self.layers!r}: expected all or numbers, as in 0,3,-1") from None

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """The weights of `--over`.

        Raises:
            ProbeError: They are no numbers, or the target is not a reward.
        """
        if self.over is None:
            return ()
        if not any(target.endswith("reward") for target in self.target):
            raise ProbeError(
                "--over needs --target reward or token-reward: it is about the composite's reward"
            )
        try:
            found = tuple(dict.fromkeys(float(weight) for weight in self.over.split(",")))
        except ValueError:
            raise ProbeError(f"--over {self.over!r}: expected weights, as in 0.5,1,2") from None
        if len(found) > MAX_OVER or not all(0 < abs(weight) < float("inf") for weight in found):
            raise ProbeError(f"--over {self.over!r}: expected at most {MAX_OVER} finite weights other than 0")
        return found

    def pool_of(self, target: str) -> str:
        """How the activations for a target are pooled; none where single tokens are wanted."""
        if TARGETS[target] or self.autoencoder:
            return "none"
        return self.pool or "last"

    @property
    def rows(self) -> int:
        """How many tokens of a text are kept where they are not pooled."""
        return max(1, self.max_tokens // len(self.examples.texts))
