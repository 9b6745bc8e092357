"""A family in this process: what is asked of the application, and what comes back."""

import asyncio
import math
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

import eft_server
from eft_server import LoadedFamily
from eft_server.engine.launcher.stages import Stages
from eft_server.errors import RequestError

from .api.api_checkpoint import write_checkpoint
from .api.fake_engine import TEXT, FakeEngine
from .api.served import family as family_config

PLAN = SimpleNamespace(chat_template=None, templates={}, own_tokenizers=())


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return FakeEngine(write_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def engines(engine, monkeypatch):
    """Stand in for real engines: whether they run, in the order of their start."""
    engine.reset()
    running = []

    @asynccontextmanager
    async def open_engine(plan, stages):
        index = len(running)
        running.append(True)
        yield engine
        running[index] = False

    monkeypatch.setattr("eft_server.api.in_process.open_engine", open_engine)
    return running


@pytest.fixture
def family(engines):
    with LoadedFamily(family_config(), PLAN, Stages(quiet=True)) as family:
        yield family


def test_a_chat_is_answered_with_its_text(family, engine):
    answer = family.chat("Hello", weights={"helpful": 0.5}, scale=1.5, temperature=0, max_tokens=40)
    assert str(answer) == answer.text
    assert answer.text.startswith(TEXT)
    applied = {"model": "demo", "weights": {"helpful": 0.5, "harmless": 0.0}, "scale": 1.5}
    assert answer.body["eft"] | applied == answer.body["eft"]
    assert (engine.asked[0].temperature, engine.asked[0].max_tokens) == (0, 40)
    assert engine.asked[0].extra_args["eft"] == [1.0, -0.75, 0.75, 0.0]


def test_messages_are_taken_as_openai_takes_them(family):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    shorter = family.chat("Hello").body["usage"]["prompt_tokens"]
    assert family.chat(messages).body["usage"]["prompt_tokens"] > shorter


def test_a_completion_continues_text_and_token_ids(family):
    assert family.complete("Hello", model="demo/base").body["model"] == "demo/base"
    assert family.complete([5, 6, 7]).body["usage"]["prompt_tokens"] == 3


def test_completions_are_scored_as_the_server_scores_them(family, engine):
    item = {"prompt": [1, 2], "completion": [5, 6]}
    answer = family.score([item, item], weights={"helpful": 0.5}, members=["base"])
    assert [list(scored["members"]) for scored in answer["data"]] == [["base"], ["base"]]
    assert answer["eft"]["weights"] == {"helpful": 0.5, "harmless": 0.0}
    with pytest.raises(RequestError, match=r"items\.0\.completion"):
        family.score([{"prompt": "x"}])


def test_several_prompts_are_answered_at_once_and_in_order(family, engine):
    engine.pause_s = 0.01
    answers = family.chat_many(["a", "b b b b"], max_tokens=3, weights={"helpful": 1})
    assert len({answer.body["usage"]["prompt_tokens"] for answer in answers}) == 2
    assert [len(family.complete_many(["a", [5]]))] == [2]
    bodies = [{"messages": [{"role": "user", "content": "a"}]}, {"prompt": "a", "eft": {"scale": 0.5}}]
    chat, text = family.answer_many(bodies)
    assert (chat.body["object"], text.body["eft"]["scale"]) == ("chat.completion", 0.5)
    assert family.answer_many([]) == []


def test_no_more_requests_are_under_way_than_the_family_file_allows(engines, engine):
    engine.pause_s = 0.01
    with LoadedFamily(family_config(max_concurrent_requests=2), PLAN, Stages(quiet=True)) as family:
        assert len(family.complete_many(["a"] * 12)) == 12


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temprature": 1}, "Did you mean 'temperature'?"),
        ({"stream": True}, "answers come whole here"),
        ({"weights": {"helpful": 7}}, "eft.weights.helpful: 7 is out of bounds"),
        ({"weights": {"helpful": math.nan}}, "NaN is not a JSON number"),
        ({"model": "gpt-4"}, "'gpt-4' is not served"),
    ],
)
def test_what_the_server_would_refuse_is_an_error_that_says_so(family, fields, message):
    with pytest.raises(RequestError) as caught:
        family.chat_many(["Hello"], **fields)
    assert message in str(caught.value)
    assert 400 <= caught.value.status < 500


def test_prompts_where_one_is_expected_are_refused(family):
    with pytest.raises(TypeError, match="use chat_many"):
        family.chat(["a", "b"])
    with pytest.raises(TypeError, match="use complete_many"):
        family.complete(["a", "b"])
    with pytest.raises(TypeError, match="not both"):
        family.chat("a", weights={"helpful": 1}, eft={"scale": 1})


def test_the_names_that_can_be_asked_are_told(family):
    assert family.name == "demo"
    names = ("demo", "demo-helpful", "demo/base", "demo/small", "demo/helpful", "demo/harmless")
    assert family.models == names


def test_closing_stops_the_engine_once(engines):
    family = LoadedFamily(family_config(), PLAN, Stages(quiet=True))
    assert engines == [True]
    family.close()
    family.close()
    assert engines == [False]
    with pytest.raises(RuntimeError, match="the family 'demo' is closed"):
        family.chat("Hello")


def test_an_engine_that_does_not_start_leaves_nothing_behind(monkeypatch):
    @asynccontextmanager
    async def open_engine(plan, stages):
        raise OSError("no memory")
        yield

    monkeypatch.setattr("eft_server.api.in_process.open_engine", open_engine)
    loops = []
    make = asyncio.new_event_loop
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: loops.append(make()) or loops[-1])
    with pytest.raises(OSError, match="no memory"):
        LoadedFamily(family_config(), PLAN, Stages(quiet=True))
    assert [loop.is_closed() for loop in loops] == [True]


def test_the_public_surface_is_this():
    assert eft_server.__all__ == ["Answer", "LoadedFamily", "__version__", "load"]
