"""The members that ship are those that the evaluation's table speaks of."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from eft_demo.build import SHIPPED
from eft_demo.evaluation import Score, answers, ask, frontier_name, score, settings
from eft_demo.recipe import FULL
from eft_demo.report import as_markdown
from eft_demo.tokenizer import CHAT_TEMPLATE
from eft_demo.world import build_world

ROOT = Path(__file__).parents[3]
MEMBERS = ROOT / "server" / "eft_server" / "family" / "bundled" / "demo"
BYTES_AT_MOST = 20_000_000


@cache
def _tokenizer(name: str) -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(MEMBERS / name)
    return tokenizer


@cache
def _model(name: str) -> LlamaForCausalLM:
    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(MEMBERS / name, dtype=torch.float32)
    return model.eval()


def test_all_members_together_are_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in MEMBERS.rglob("*") if path.is_file()) < BYTES_AT_MOST


@pytest.mark.parametrize("name", SHIPPED)
def test_a_member_is_a_complete_bfloat16_checkpoint_with_the_one_tokenizer(name: str) -> None:
    config = json.loads((MEMBERS / name / "config.json").read_text())
    assert (config["dtype"], config["vocab_size"]) == ("bfloat16", FULL.vocabulary)
    assert _tokenizer(name).get_vocab() == _tokenizer(SHIPPED[0]).get_vocab()
    assert _tokenizer(name).chat_template == CHAT_TEMPLATE
    assert (MEMBERS / name / "generation_config.json").exists()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_shipped_members_repeat_the_table_s_greedy_row(weight: float) -> None:
    world = build_world(FULL.seed, subjects_per_kind=FULL.subjects_per_kind)
    questions = ask(world, FULL.seed, safe=FULL.safe_questions, unsafe=FULL.unsafe_questions)
    blend = settings({name: _model(name) for name in SHIPPED})[frontier_name(weight)]
    found = score(questions, answers(blend, questions, _tokenizer("large-base"), sampled=False))
    expected = _published()["greedy", frontier_name(weight)]
    for measure in ("correct", "full", "refusals", "false_refusals"):
        # Kernels round differently from machine to machine: a near tie may fall the other way.
        assert found.rate(measure) == pytest.approx(expected.rate(measure), abs=0.02)


def test_up_scaling_closes_four_fifths_of_every_gap_in_facts() -> None:
    gaps = json.loads((ROOT / "docs" / "demo-evaluation.json").read_text())["gaps_closed"]
    shares = [gap["closed"] for gap in gaps if gap["measure"] == "correct"]
    assert len(shares) == 4 and min(shares) >= 0.8


def test_the_published_table_is_the_one_that_the_counts_give() -> None:
    assert (ROOT / "docs" / "demo-evaluation.md").read_text() == as_markdown(_published())


def _published() -> dict[tuple[str, str], Score]:
    document = json.loads((ROOT / "docs" / "demo-evaluation.json").read_text())
    return {(row["decoding"], row["setting"]): Score(**row["counts"]) for row in document["settings"]}
