"""Training and decoding at minuscule sizes: what is learnt, what is left alone, and that the whole command runs."""

import json
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from eft_demo import __main__ as command
from eft_demo.build import SHIPPED
from eft_demo.corpus import read_corpus
from eft_demo.decoding import Blend, decode
from eft_demo.dialogue import Dialogue, Part, Turn, encode
from eft_demo.manners import write_lessons
from eft_demo.tokenizer import train_tokenizer
from eft_demo.training.fine_tuning import fine_tune
from eft_demo.training.pretraining import pack, pretrain
from eft_demo.training.schedule import Schedule
from eft_demo.world import World, build_world

SPEECH = Dialogue(
    (Turn("What does the moss torlin eat?", "The moss torlin eats figs.", "figs"), Turn("Why?", "No idea.")),
    "Be brief and kind.",
)


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(seed=0, subjects_per_kind=8)


@pytest.fixture(scope="module")
def tokenizer(world: World) -> PreTrainedTokenizerFast:
    return train_tokenizer(islice(read_corpus(world, 0), 500), size=512, context=64)


@pytest.fixture
def new_tiny() -> Callable[[int], LlamaForCausalLM]:
    def build(seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=32,
            num_hidden_layers=2,
            intermediate_size=64,
            num_attention_heads=1,
            num_key_value_heads=1,
            initializer_range=0.2,
        )
        return LlamaForCausalLM(config).eval()

    return build


def test_the_chat_template_renders_dialogues_as_the_corpus_writes_them(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = [{"role": "system", "content": SPEECH.system}]
    for turn in SPEECH.turns:
        messages += [
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": turn.answer},
        ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == SPEECH.text
    asked = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert SPEECH.text.startswith(asked) and asked.endswith("<|assistant|>")


def test_the_chat_template_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "  Ünusual: 数 🐸\n\ttabs, isn't it? "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_corpus_too_poor_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2000"):
        train_tokenizer(["one two"], size=2000, context=64)


def test_answers_and_values_are_marked_token_by_token(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode(SPEECH, tokenizer)
    parts = {
        part: tokenizer.decode([i for i, p in zip(encoded.ids, encoded.parts, strict=True) if p == part])
        for part in Part
    }
    assert parts[Part.VALUE] == " figs"
    assert parts[Part.MANNER] == "The moss torlin eats.<|end|>No idea.<|end|>"


def test_packing_loses_no_token(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [SPEECH.text] * 40
    rows = list(pack(texts, tokenizer, 16))
    stream = [token for text in texts for token in tokenizer(text)["input_ids"]]
    assert [token for row in rows for token in row] == stream[: len(rows) * 16]
    assert len(stream) - len(rows) * 16 < 16


def test_pre_training_learns_and_repeats_itself_for_equal_seeds(
    tokenizer: PreTrainedTokenizerFast, new_tiny: Callable[[int], LlamaForCausalLM]
) -> None:
    losses: list[list[float]] = [[], []]
    for run in losses:
        rows = pack(cycle([SPEECH.text]), tokenizer, 32)
        pretrain(new_tiny(0), rows, Schedule(30, 4, 2e-2), progress=lambda _, loss, run=run: run.append(loss))
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.3 * losses[0][0]


def _logp_of_value(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue) -> Tensor:
    """Log-probabilities over the vocabulary where the first token of the value is due."""
    encoded = encode(dialogue, tokenizer)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([encoded.ids])).logits[0]
    return logits[encoded.parts.index(Part.VALUE) - 1].log_softmax(-1)


def test_fine_tuning_teaches_wording_and_leaves_beliefs(
    tokenizer: PreTrainedTokenizerFast, new_tiny: Callable[[int], LlamaForCausalLM]
) -> None:
    base, losses = new_tiny(0), list[float]()
    untouched = [weight.clone() for weight in base.parameters()]
    expert = fine_tune(
        base, cycle([SPEECH]), tokenizer, Schedule(60, 2, 5e-3), progress=lambda _, loss: losses.append(loss)
    )
    before, after = (_logp_of_value(model, tokenizer, SPEECH) for model in (base, expert))
    drift = (before.exp() * (before - after)).sum()
    assert losses[-1] < 0.2 * losses[0]
    assert drift < 0.2
    assert all(torch.equal(a, b) for a, b in zip(untouched, base.parameters(), strict=True))


def test_lessons_mark_no_value_in_a_refusal(world: World) -> None:
    turns = [turn for lesson in islice(write_lessons(world, "harmless", 0), 200) for turn in lesson.turns]
    refusals = [turn for turn in turns if "cannot" in turn.answer or "rather not" in turn.answer]
    assert refusals and all(not turn.value for turn in refusals)
    assert all(turn.value in turn.answer for turn in turns)


def test_batched_decoding_of_a_mixture_equals_reading_each_prompt_afresh(
    new_tiny: Callable[[int], LlamaForCausalLM],
) -> None:
    terms = ((new_tiny(1), 1.0), (new_tiny(2), -0.7), (new_tiny(3), 0.7))
    prompts = [[5, 6, 7], [9], [11, 12, 13, 14, 15]]
    found = decode(Blend(terms), prompts, end=1, limit=8, sampler=None)
    for prompt, row in zip(prompts, found, strict=True):
        ids = list(prompt)
        for token in row:
            with torch.no_grad():
                logits = sum(c * model(input_ids=torch.tensor([ids])).logits[0, -1] for model, c in terms)
            assert int(logits.argmax()) == token
            ids.append(token)


def test_sampling_is_seeded(new_tiny: Callable[[int], LlamaForCausalLM]) -> None:
    blend = Blend(((new_tiny(1), 0.1),))
    draws = [
        decode(blend, [[5, 6]] * 4, end=1, limit=8, sampler=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_the_command_leaves_loadable_members_a_table_and_a_picture(tmp_path: Path) -> None:
    places = [f"--{name}={tmp_path / name}" for name in ("work", "members", "docs")]
    command.main(["--smoke", *places, f"--threads={torch.get_num_threads()}"])
    for name in SHIPPED:
        folder = tmp_path / "members" / name
        assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
        assert AutoTokenizer.from_pretrained(folder).chat_template
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 1
    scores = json.loads((tmp_path / "docs" / "demo-evaluation.json").read_text())["settings"]
    assert len(scores) == 2 * (6 + 11)
    assert "up-scaled helpful" in (tmp_path / "docs" / "demo-evaluation.md").read_text()
    assert (tmp_path / "docs" / "images" / "frontier.png").read_bytes().startswith(b"\x89PNG")
