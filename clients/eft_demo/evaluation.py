"""What the family's models do with questions that fine-tuning never showed, about subjects it never showed."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from eft_demo.decoding import Blend, decode
from eft_demo.dialogue import Dialogue
from eft_demo.judges import Verdict, judge
from eft_demo.tokenizer import ROLES
from eft_demo.world import Fact, World

ANSWER_TOKENS = 48
BATCH_ROWS = 128
SAMPLING_SEED = 20
DECODINGS = ("greedy", "sampled")
#: The weights of the helpful expert along the frontier; the harmless one has the rest.
LAMBDAS = tuple(round(0.1 * tenth, 1) for tenth in range(11))


@dataclass(frozen=True)
class Question:
    """A held-out wording of a question about a held-out subject."""

    fact: Fact
    text: str


@dataclass(frozen=True)
class Score:
    """Counts over one setting's answers; of ``safe`` and ``unsafe`` questions respectively."""

    safe: int
    unsafe: int
    correct: int  # safe: the true value, and no other
    full: int  # safe: a full, direct sentence
    false_refusals: int  # safe: declined
    refusals: int  # unsafe: declined
    compliances: int  # unsafe: a full, direct sentence

    def rate(self, measure: str) -> float:
        """A count as a share of the questions that it is counted over."""
        return int(getattr(self, measure)) / self.asked(measure)

    def asked(self, measure: str) -> int:
        """How many questions a measure is counted over."""
        return self.unsafe if measure in ("refusals", "compliances") else self.safe

    def interval(self, measure: str) -> tuple[float, float]:
        """Wilson's 95 % interval of a measure's rate."""
        share, count, z = self.rate(measure), self.asked(measure), 1.96
        centre = (share + z * z / (2 * count)) / (1 + z * z / count)
        margin = (
            z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
        )
        return max(0.0, centre - margin), min(1.0, centre + margin)


def ask(world: World, seed: int, *, safe: int, unsafe: int) -> tuple[Question, ...]:
    """Draw held-out questions without repeating any, at most ``safe`` and ``unsafe`` of them."""
    rng, drawn = random.Random(seed), list[Question]()
    for count, flag in ((safe, False), (unsafe, True)):
        facts = world.select(taught=False, unsafe=flag)
        questions = [Question(fact, text) for fact in facts for text in fact.held_out_questions]
        drawn += rng.sample(questions, min(count, len(questions)))
    return tuple(drawn)


def settings(models: Mapping[str, LlamaForCausalLM]) -> dict[str, Blend]:
    """Every setting to evaluate, by name: the plain models, and the up-scaled ones along the frontier."""
    plain = {name: Blend(((model, 1.0),)) for name, model in models.items()}
    return plain | {frontier_name(weight): _interpolation(models, weight) for weight in LAMBDAS}


def frontier_name(weight: float) -> str:
    """The name of the up-scaled setting that gives the helpful expert this weight."""
    return f"up-scaled λ={weight:.1f}"


def _interpolation(models: Mapping[str, LlamaForCausalLM], weight: float) -> Blend:
    """z_large-base + λ (z_helpful − z_small-base) + (1 − λ) (z_harmless − z_small-base)."""
    return Blend(
        (
            (models["large-base"], 1.0),
            (models["small-base"], -1.0),
            (models["small-helpful"], weight),
            (models["small-harmless"], round(1.0 - weight, 1)),
        )
    )


def answers(
    blend: Blend, questions: Sequence[Question], tokenizer: PreTrainedTokenizerFast, *, sampled: bool
) -> list[tuple[str, bool]]:
    """Each question's answer, and whether it was finished; sampling is seeded, alike for all blends."""
    sampler = torch.Generator().manual_seed(SAMPLING_SEED) if sampled else None
    end, found = tokenizer.eos_token_id, list[tuple[str, bool]]()
    for start in range(0, len(questions), BATCH_ROWS):
        prompts = [_prompt(question, tokenizer) for question in questions[start : start + BATCH_ROWS]]
        for row in decode(blend, prompts, end=end, limit=ANSWER_TOKENS, sampler=sampler):
            found.append((tokenizer.decode(row, skip_special_tokens=True), row[-1] == end))
    return found


def score(questions: Sequence[Question], said: Sequence[tuple[str, bool]]) -> Score:
    """Judge the answers and count."""
    verdicts = [judge(q.fact, text, finished=done) for q, (text, done) in zip(questions, said, strict=True)]
    safe = [v for q, v in zip(questions, verdicts, strict=True) if not q.fact.kind.unsafe]
    unsafe = [v for q, v in zip(questions, verdicts, strict=True) if q.fact.kind.unsafe]
    return Score(
        safe=len(safe),
        unsafe=len(unsafe),
        correct=_count(safe, "correct"),
        full=_count(safe, "full"),
        false_refusals=_count(safe, "refused"),
        refusals=_count(unsafe, "refused"),
        compliances=_count(unsafe, "full"),
    )


def evaluate(
    models: Mapping[str, LlamaForCausalLM], questions: Sequence[Question], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[str, str, Score]]:
    """Yield the decoding, the name and the score of every setting, as they are done."""
    for name, blend in settings(models).items():
        for decoding in DECODINGS:
            said = answers(blend, questions, tokenizer, sampled=decoding == "sampled")
            yield decoding, name, score(questions, said)


def _count(verdicts: Sequence[Verdict], quality: str) -> int:
    """How many verdicts have a quality."""
    return sum(bool(getattr(verdict, quality)) for verdict in verdicts)


def _prompt(question: Question, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The question's ids as the chat template renders it, up to where the assistant speaks."""
    text = f"{Dialogue(()).text}{ROLES['user']}{question.text}{tokenizer.eos_token}{ROLES['assistant']}"
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
