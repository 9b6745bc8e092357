"""Results as values: built by keyword, shown, compared, and never changed."""

import math
import pickle

import pytest
from pydantic import ValidationError

from eft_client import ChatResult, Choice, MemberScores, Piece, ScoredItem, ScoreResult, Usage
from eft_client.results import model_cards

USAGE = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
CHAT = ChatResult(
    choices=(Choice(index=0, text="Hi", message={"role": "assistant"}),), model="demo", usage=USAGE
)
SCORES = MemberScores(logprobs=(-0.5, -math.inf), total=-math.inf, ranks=(1, 9), top_logprobs=(-0.5, -0.1))
ITEM = ScoredItem(index=0, token_ids=(5, 6), tokens=("He", "llo"), composite=SCORES)
SCORED = ScoreResult(items=(ITEM,), model="demo")


def test_results_are_shown_as_what_they_hold() -> None:
    assert repr(USAGE) == str(USAGE) == "Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)"
    assert repr(CHAT.choices[0]) == "Choice(index=0, text='Hi', finish_reason=None, logprobs=None)"
    assert repr(Piece(text="Hi")) == (
        "Piece(text='Hi', index=0, finish_reason=None, eft=None, logprobs=None, usage=None)"
    )
    assert str(SCORED) == repr(SCORED) == "<ScoreResult of demo\n  <ScoredItem 0: 'Hello' -inf>>"


def test_a_score_result_is_a_sequence_of_its_items() -> None:
    assert (list(SCORED), len(SCORED), SCORED[0]) == ([ITEM], 1, ITEM)


@pytest.mark.parametrize("result", [USAGE, CHAT, SCORED])
def test_results_can_be_pickled_and_not_changed(result: Usage | ChatResult | ScoreResult) -> None:
    assert pickle.loads(pickle.dumps(result)) == result
    name = next(iter(type(result).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(result, name, getattr(result, name))


def test_only_the_field_eft_of_a_card_says_how_a_model_behaves() -> None:
    (card,) = model_cards(
        {"data": [{"id": "llama", "description": "fast", "scale": "8B", "weights": "fp16"}]}
    )
    assert (card.id, card.description, card.scale, card.weights) == ("llama", "", 1.0, {})
