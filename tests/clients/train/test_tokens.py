"""What is trained on is what the server reads: the same ids, the answer's end learnt, the prompt not."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, TrainerCallback

from eft_client.progress import Progress
from eft_server.api.serving.end_of_turn import end_of_turn
from eft_server.family.checkpoint import read_checkpoint, read_tokenizer
from eft_server.family.family import Source
from eft_server.family.inspection import inspect_family
from eft_server.family.load import bundled_families, load_config
from eft_server.family.templates import family_voices, member_templates
from eft_train.data.forms import Example
from eft_train.data.tokens import Tokenised, Tokens, tokenised
from eft_train.hardware import Hardware
from eft_train.preparation import prepare
from eft_train.recipe import load_recipe
from eft_train.trainers import pair_rows, text_rows, trainer_of

from .tiny import plan_of

DEMO = bundled_families()["demo"].parent / "demo" / "small-base"
MESSAGES = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who governs Market Mossop?"},
    {"role": "assistant", "content": "A mayor."},
    {"role": "user", "content": "Since when?"},
)


def _tokenised(base: Path, *examples: Example) -> list[Tokenised]:
    checkpoint = read_checkpoint("base", Source(str(base)))
    return tokenised(examples, checkpoint, read_tokenizer(str(base), None))


def test_a_conversation_is_read_as_the_server_renders_it(tmp_path: Path) -> None:
    """The family that serves the expert renders messages for it; an adapter has its reference's tokenizer."""
    file = tmp_path / "family.yaml"
    file.write_text(
        f"name: f\nbase: {DEMO}\nexperts: {{expert: {{model: {DEMO.parent / 'small-helpful'}, reference: base}}}}"
    )
    config = load_config(str(file))
    report = inspect_family(config)
    templates = member_templates(config.family, report.chat_templates)
    [voice] = family_voices(config.family, templates, report.own_tokenizers)
    _, ids = voice.read(MESSAGES, {})
    [found] = _tokenised(DEMO, Example("a", MESSAGES, "Since spring.", "No."))
    assert list(found.prompt) == ids
    tokenizer = read_tokenizer(str(DEMO), None)
    end = end_of_turn(tokenizer, None, report.end_ids)
    assert list(found.chosen) == [*tokenizer("Since spring.", add_special_tokens=False)["input_ids"], end]
    whole = tokenizer.apply_chat_template(
        [*MESSAGES, {"role": "assistant", "content": "Since spring."}], tokenize=False
    )
    assert tokenizer.decode([*found.prompt, *found.chosen]) == whole


def test_what_a_template_writes_behind_the_end_of_a_turn_is_not_learnt(base: Path) -> None:
    [found] = _tokenised(base, Example("a", ({"role": "user", "content": "hi"},), "yes"))
    tokenizer = read_tokenizer(str(base), None)
    assert tokenizer.decode(found.prompt) == "<bos>u:hi<eos>.a:"
    assert tokenizer.decode(found.chosen) == "yes<eos>"


def test_text_begins_with_the_special_tokens_that_the_server_puts_there() -> None:
    [found] = _tokenised(DEMO, Example("a", "The mayor is", " not known."))
    tokenizer = read_tokenizer(str(DEMO), None)
    assert list(found.prompt) == tokenizer("The mayor is")["input_ids"]
    assert tokenizer.decode(found.chosen) == " not known.<|end|>"


def test_tokens_do_not_merge_where_the_answer_begins() -> None:
    [apart] = _tokenised(DEMO, Example("a", "Mar", "ket"))
    tokenizer = read_tokenizer(str(DEMO), None)
    assert len(tokenizer("Market", add_special_tokens=False)["input_ids"]) < len(apart.chosen)


PAIR = Tokenised("a", (5, 6, 7), (8, 9, 91), (10, 91))


def test_the_trainer_for_texts_learns_answers_only(base: Path, tmp_path: Path) -> None:
    assert text_rows([PAIR], "both").to_list() == [
        {"input_ids": [5, 6, 7, 8, 9, 91], "labels": [-100, -100, -100, 8, 9, 91]},
        {"input_ids": [5, 6, 7, 10, 91], "labels": [-100, -100, -100, 10, 91]},
    ]
    assert len(text_rows([PAIR], "chosen")) == 1


@pytest.mark.parametrize("recipe", ["sft", "dpo", "arm"])
def test_a_batch_of_trls_holds_these_ids(recipe: str, base: Path, tmp_path: Path) -> None:
    batch = _batch(recipe, base, tmp_path)
    learnt = batch["labels"] != -100 if recipe == "sft" else batch["completion_mask"] == 1
    rows = [(ids[mask.bool()].tolist(), ids[here].tolist())
            for ids, mask, here in zip(batch["input_ids"], batch["attention_mask"], learnt, strict=True)]  # fmt: skip
    assert rows[0] == ([5, 6, 7, 8, 9, 91], [8, 9, 91])
    if recipe != "sft":
        assert rows[1] == ([5, 6, 7, 10, 91], [10, 91])


def _batch(recipe: str, base: Path, tmp_path: Path) -> Any:
    phase = load_recipe(recipe).last
    options = {"output_dir": str(tmp_path), "report_to": [], "disable_tqdm": True} | Hardware(
        True, "float32"
    ).options
    model = AutoModelForCausalLM.from_pretrained(base)
    models = {"model": model, "processing_class": read_tokenizer(str(base), None)}
    trainer = trainer_of(phase, [PAIR], options, models, TrainerCallback())
    return next(iter(trainer.get_train_dataloader()))


def test_long_answers_are_cut_and_counted() -> None:
    long = Tokenised("b", (1, 2), (3,) * 9, (4,))
    full = Tokenised("c", (1,) * 6, (2,))
    tokens = Tokens.within([PAIR, long, full], 6)
    assert [len(example.prompt) + len(example.chosen) for example in tokens.examples] == [6, 6]
    assert (tokens.cut, tokens.dropped) == (1, 1)
    assert tokens.examples[1].rejected == (4,)


def test_cut_and_dropped_examples_are_reported(base: Path, data: Path, tmp_path: Path) -> None:
    with Progress() as progress:
        # Prompts of 25 and 26 tokens.
        prepared = prepare(
            plan_of("dpo", base, data, tmp_path / "out", "dpo.max_length=18", held_out=0.0), progress
        )
    assert len(prepared.division.trained_on) == 10
    assert [note for note in prepared.notes if note.startswith("dpo")] == [
        "dpo: 10 of 10 examples are cut off at 18 tokens",
        "dpo: 10 examples are left out, since their prompts fill 18 tokens",
    ]


def test_pairs_are_rows_of_ids() -> None:
    assert pair_rows([PAIR]).to_list() == [
        {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9, 91], "rejected_ids": [10, 91]}
    ]
