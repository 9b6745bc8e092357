"""The texts that follow from the data without a model: answers, other prompts' answers, and tokens in disorder."""

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence

from eft_client.dynamics.texts.text import HELD_OUT, TRAINING, Text
from eft_client.pairs.pair import Pair

__all__ = ["disordered", "natural", "seeded"]


def natural(
    pairs: Mapping[str, Sequence[Pair]], side: str, index: int, *, seed: int, end: bool
) -> Iterator[Text]:
    """A pair's own answers, those rephrased where the data has them, and two other prompts' answers.

    Args:
        pairs: All pairs by side.
        side: The pair's.
        index: Its place there.
        seed: Of the choice of other prompts.
        end: Whether the end of the turn is scored.
    """
    pair = pairs[side][index]
    own = {
        "chosen": pair.chosen,
        "chosen_rephrased": pair.chosen_rephrased,
        "rejected": pair.rejected,
        "rejected_rephrased": pair.rejected_rephrased,
    }
    for kind, text in own.items():
        if text:
            yield Text(kind, text, end)
    for kind, of in (("other_trained", TRAINING), ("other_held_out", HELD_OUT)):
        other = _other(pairs.get(of, ()), pair, seeded(seed, kind, pair.id))
        if other is not None:
            yield Text(kind, other, end)


def disordered(
    tokens: Sequence[int], pool: Sequence[int], rng: random.Random, *, end: bool
) -> Iterator[Text]:
    """A text's tokens in random order, and as many tokens out of a pool.

    Args:
        tokens: The text's, without the end of the turn.
        pool: The tokens to draw from, each as likely.
        rng: What draws.
        end: Whether the end of the turn is scored.
    """
    shuffled = list(tokens)
    rng.shuffle(shuffled)
    yield Text("permuted", tuple(shuffled), end)
    yield Text("random", tuple(rng.choices(pool, k=len(tokens))), end)


def seeded(seed: int, what: str, pair: str) -> random.Random:
    """A generator for one purpose and one pair, so that what it draws depends on no other."""
    return random.Random(zlib.crc32(f"{seed} {what} {pair}".encode("utf-8", "surrogatepass")))


def _other(pairs: Sequence[Pair], pair: Pair, rng: random.Random) -> str | None:
    """Another prompt's chosen answer, which is not this prompt's; None where there is none."""
    for candidate in rng.sample(pairs, len(pairs)) if len(pairs) <= 32 else rng.sample(pairs, 32):
        if candidate.prompt != pair.prompt and candidate.chosen not in (pair.chosen, pair.rejected):
            return candidate.chosen
    return None
