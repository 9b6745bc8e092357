"""Whether what is served is what was trained: the trainer's log-probabilities and rewards, from the family file."""

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eft_client.progress import Progress
from eft_server.environment import LogLevel, log_vllm
from eft_server.errors import EftError
from eft_server.family.file import ServerConfig
from eft_server.family.load import load_config
from eft_train.errors import TrainingError
from eft_train.results.families import EXPERT

if TYPE_CHECKING:
    from eft_client import EftClient
    from eft_client.results import ScoredItem, ScoreResult
    from eft_train.measuring import Measured

__all__ = ["MOST_EXAMPLES", "TOLERANCE", "Verification", "verify"]

TOLERANCE = 1e-3
"""Nats between the server's and the trainer's log-probability of a token, and of an answer of up to `_SHORT` tokens."""

_SHORT = 100
"""Rounding adds up over tokens: a longer answer may differ by as much more."""

MOST_EXAMPLES = 16
_AT_A_TIME = 8
START = "before-the-last-phase"
"""The member for the expert from which a second phase started."""

_CAUSES = (
    "the expert's or the reference's files changed during the training; the trainer did not measure in float32; the "
    "model gives probability to padding ids, which the server leaves out; vLLM computes this architecture otherwise "
    "than transformers (docs/members.md lists what was tested)"
)


@dataclass(frozen=True)
class _Text:
    """An answer with what the trainer gave each of its tokens, at the end and before the last phase."""

    example: str
    answer: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    trained: tuple[float, ...]
    start: tuple[float, ...]


@dataclass
class _Worst:
    """The greatest differences found, in nats."""

    token: float = 0.0
    total: float = 0.0
    reward: float = 0.0


@dataclass(frozen=True)
class Verification:
    """What was compared, and the greatest differences, in nats.

    Attributes:
        examples: Held-out examples.
        texts: Their answers.
        tokens: The answers' tokens, ends of turns included.
        tolerance: What no token's difference exceeds, and no answer's of up to 100 tokens; more tokens, as much more.
        token_difference: The greatest of a token's log-probability.
        total_difference: The greatest of an answer's.
        reward_difference: The greatest of an answer's reward, the log-probability that the last phase added.
        warnings: What `eft check` warns of.
    """

    examples: int
    texts: int
    tokens: int
    tolerance: float
    token_difference: float
    total_difference: float
    reward_difference: float
    warnings: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """For `training.json`."""
        return asdict(self) | {"warnings": list(self.warnings)}

    @property
    def words(self) -> str:
        """What was found, in a sentence."""
        return (
            f"the server gives what was trained: {self.texts} answers of {self.examples} examples, {self.tokens} "
            f"tokens; log-probabilities differ by at most {self.token_difference:.1e} nats a token and "
            f"{self.total_difference:.1e} an answer, rewards by {self.reward_difference:.1e}; eft check passes"
        )


def verify(
    folder: Path, measured: "Sequence[Measured]", progress: Progress, *, start: Path | None = None
) -> Verification:
    """Serve a training's folder from this process in float32, and compare with what the trainer measured.

    For every answer: its log-probability under the expert, token by token and in all, and its reward. The trainer's
    reward over β is what the last phase added to the log-probability; the server's is the expert's implicit reward less
    that of the expert from which the last phase started, which is 0 where it started from the reference.

    Args:
        folder: The training's folder, with `family.yaml` and `expert/`.
        measured: Examples as the trainer measured them, the first `MOST_EXAMPLES` of which are compared.
        progress: Where to report.
        start: The folder of the expert from which the last phase started; None where that was the reference.

    Raises:
        TrainingError: A number is off, or the family cannot be served; it names the example and both numbers.
    """
    texts = [text for example in measured[:MOST_EXAMPLES] for text in _texts(example)]
    if not texts:
        raise TrainingError("verification: no example was measured; hold some out, or use --no-verify")
    gc.collect()  # The trainer's model may hang in a cycle, and its memory is needed.
    config = _config(folder, texts, start)
    stage, worst = progress.begin("comparing with the server", len(texts)), _Worst()
    with _opened(config, folder) as (client, warnings):
        for first in range(0, len(texts), _AT_A_TIME):
            batch = texts[first : first + _AT_A_TIME]
            for text, item in zip(batch, _scored(client, batch), strict=True):
                _compare(text, item, start is not None, worst)
                stage()
    count = len({text.example for text in texts})
    tokens = sum(len(text.ids) for text in texts)
    found = Verification(
        count, len(texts), tokens, TOLERANCE, worst.token, worst.total, worst.reward, warnings
    )
    progress.say(found.words)
    return found


def _texts(example: "Measured") -> Iterator[_Text]:
    yield _Text(
        example.id, "chosen", example.prompt_ids, example.chosen_ids, example.chosen, example.start_chosen
    )
    if example.rejected_ids is not None:
        assert example.rejected is not None and example.start_rejected is not None
        yield _Text(
            example.id,
            "rejected",
            example.prompt_ids,
            example.rejected_ids,
            example.rejected,
            example.start_rejected,
        )


def _config(folder: Path, texts: Sequence[_Text], start: Path | None) -> ServerConfig:
    """The family in float32, long enough for the texts, with the last phase's start as another expert."""
    longest = max(len(text.prompt_ids) + len(text.ids) for text in texts)
    config = load_config(folder / "family.yaml")
    overrides = ["vllm.dtype=float32", f"vllm.max_model_len={longest + 1}", f"vllm.max_num_seqs={_AT_A_TIME}"]
    if start is not None:
        kind = "adapter" if (start / "adapter_config.json").exists() else "model"
        reference = config.experts[EXPERT].reference
        overrides.append(f"experts.{START}={{{kind}: {start.resolve()}, reference: {reference}}}")
    return load_config(folder / "family.yaml", overrides)


@contextmanager
def _opened(config: ServerConfig, folder: Path) -> "Iterator[tuple[EftClient, tuple[str, ...]]]":
    """An engine for the family, after all that `eft check` looks at, and what that warns of."""
    from eft_server.engine.launcher import fork_server
    from eft_server.engine.launcher.plan import plan
    from eft_server.engine.launcher.stages import Stages
    from eft_server.family.inspection import inspect_family
    from eft_server.local import open_client

    log_vllm(None, default=LogLevel.ERROR)
    fork_server.start()
    try:
        with Stages(quiet=True) as stages:
            report = inspect_family(config)
            client = open_client(config, plan(config, report), stages)
    except EftError as error:
        raise TrainingError(f"verification: {folder / 'family.yaml'} cannot be served: {error}") from error
    try:
        yield client, tuple(report.warnings)
    finally:
        client.close()


def _scored(client: "EftClient", texts: Sequence[_Text]) -> "ScoreResult":
    return client.score([{"prompt": list(t.prompt_ids), "completion": list(t.ids)} for t in texts])


def _compare(text: _Text, item: "ScoredItem", has_start: bool, worst: _Worst) -> None:
    """Compare one answer, and remember the differences.

    Raises:
        TrainingError: One is greater than the tolerance.
    """
    served, trained = item.members[EXPERT], math.fsum(text.trained)
    for place, (ours, trainers) in enumerate(zip(served.logprobs, text.trained, strict=True), 1):
        difference = _difference(text, f"log-probability of token {place}", (ours, trainers), TOLERANCE)
        worst.token = max(worst.token, difference)
    allowed = TOLERANCE * max(1.0, len(text.ids) / _SHORT)
    worst.total = max(worst.total, _difference(text, "log-probability", (served.total, trained), allowed))
    reward = item.rewards[EXPERT].total - (item.rewards[START].total if has_start else 0.0)
    added = trained - math.fsum(text.start)
    worst.reward = max(worst.reward, _difference(text, "reward over beta", (reward, added), allowed))


def _difference(text: _Text, what: str, numbers: tuple[float, float], allowed: float) -> float:
    """The difference between the server's number and the trainer's."""
    ours, trainers = numbers
    difference = abs(ours - trainers)
    if difference <= allowed:  # Not where either is not a number.
        return difference
    raise TrainingError(
        f"verification: example {text.example}, {text.answer} answer of {len(text.ids)} tokens, {what}: the server has "
        f"{ours:.5f}, the trainer {trainers:.5f}; expected a difference of at most {allowed:g}. Likely causes: "
        f"{_CAUSES}. The folder is complete; --no-verify skips this"
    )
