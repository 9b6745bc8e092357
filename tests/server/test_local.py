"""An engine in this process: what is asked of the application, and what comes back."""

import asyncio
import atexit
import gc
import math
import threading
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

import eft_server
from eft_client import BadRequest, Busy, EftClient, NotFound, ServerAnswered, ServerFailed, WrongArgument
from eft_server.engine.launcher.stages import Stages
from eft_server.local import open_client

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
        try:
            yield engine
        finally:
            # What was under way has been aborted by now: an engine that has stopped hears nothing.
            assert engine.running == 0
            running[index] = False

    monkeypatch.setattr("eft_server.api.in_process.open_engine", open_engine)
    return running


def opened(**server) -> EftClient:
    return open_client(family_config(**server), PLAN, Stages(quiet=True))


@pytest.fixture
def sent_once(monkeypatch):
    """Fail where a request is sent away, to come back later."""

    async def sleep(seconds: float) -> None:
        pytest.fail(f"it had to wait for {seconds} s")

    monkeypatch.setattr("eft_client.connection.sleep", sleep)


@pytest.fixture
def family(engines):
    with opened() as family:
        yield family


def test_a_chat_is_answered_with_its_text(family, engine):
    answer = family.chat("Hello", weights={"helpful": 0.5}, scale=1.5, temperature=0, max_tokens=40)
    assert str(answer) == answer.text
    assert answer.text.startswith(TEXT)
    applied = {"model": "demo", "weights": {"helpful": 0.5, "harmless": 0.0}, "scale": 1.5}
    assert answer.eft | applied == answer.eft
    assert (engine.asked[0].temperature, engine.asked[0].max_tokens) == (0, 40)
    assert engine.asked[0].extra_args["eft"] == [1.0, -0.75, 0.75, 0.0]


def test_messages_are_taken_as_openai_takes_them(family):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    shorter = family.chat("Hello").usage.prompt_tokens
    assert family.chat(messages).usage.prompt_tokens > shorter


def test_a_completion_continues_text_and_token_ids(family):
    assert family.complete("Hello", model="demo/base").model == "demo/base"
    assert family.complete([5, 6, 7]).usage.prompt_tokens == 3


def test_completions_are_scored_as_the_server_scores_them(family):
    item = {"prompt": [1, 2], "completion": [5, 6]}
    answer = family.score([item, item], weights={"helpful": 0.5}, members=["base"])
    assert [list(scored.members) for scored in answer] == [["base"], ["base"]]
    assert answer.eft["weights"] == {"helpful": 0.5, "harmless": 0.0}
    with pytest.raises(BadRequest, match=r"items\.0\.completion"):
        family.score([{"prompt": "x", "completion": ""}])


def test_a_stream_comes_piece_by_piece_as_it_is_generated(family, engine):
    engine.pause_s = 0.01
    pieces = family.stream("Hello", weights={"helpful": 0.5}, max_tokens=4)
    first = next(pieces)
    assert first.eft["weights"] == {"helpful": 0.5, "harmless": 0.0}
    assert engine.running == 1
    assert first.text + "".join(piece.text for piece in pieces) == TEXT
    assert engine.running == 0
    assert engine.aborted == []


def test_a_stream_that_is_left_early_is_aborted_in_the_engine(family, engine):
    engine.pause_s = 0.01
    for piece in family.stream("Hello", max_tokens=400):
        if piece.text:
            break
    assert len(engine.aborted) == 1
    assert engine.running == 0
    pieces = family.stream("Hello", max_tokens=400)
    next(pieces)
    pieces.close()
    assert len(engine.aborted) == 2
    assert family.chat("Hello", max_tokens=4).text == TEXT


def test_a_stream_that_fails_says_so_where_it_fails(family, engine):
    engine.fail_at = 2
    pieces = family.stream("Hello", max_tokens=4)
    with pytest.raises(ServerAnswered):
        list(pieces)


def test_several_prompts_are_answered_at_once_and_in_order(family, engine):
    engine.pause_s = 0.01
    answers = family.chat_many(["a", "b b b b"], max_tokens=3, weights={"helpful": 1})
    first, second = (answer.usage.prompt_tokens for answer in answers)
    assert first < second
    assert engine.most_running == 2
    assert len(family.complete_many(["a", [5]])) == 2
    calls = [{"messages": "a", "max_tokens": 3}, {"prompt": "a", "scale": 0.5}]
    chat, text = family.answer_many(calls)
    assert (chat.raw["object"], text.eft["scale"]) == ("chat.completion", 0.5)
    assert family.answer_many([]) == []


def test_no_more_requests_are_under_way_than_the_family_file_allows(engines, engine, sent_once):
    engine.pause_s = 0.01
    with opened(max_concurrent_requests=2, max_waiting_requests=0, waiting_timeout_s=0.01) as family:
        assert len(family.complete_many(["a"] * 12)) == 12
    assert engine.most_running == 2


def test_requests_come_from_several_threads(engines, engine, sent_once):
    engine.pause_s = 0.01
    texts = []
    with opened(max_concurrent_requests=2, max_waiting_requests=0, waiting_timeout_s=0.01) as family:

        def ask() -> None:
            texts.append(family.chat("Hello", max_tokens=4).text)
            texts.append("".join(piece.text for piece in family.stream("Hello", max_tokens=4)))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert texts == [TEXT] * 16
    assert engine.most_running == 2


def test_models_are_listed_while_every_place_is_taken(engines, engine):
    engine.pause_s = 0.01
    with opened(max_concurrent_requests=1) as family:
        for _ in family.stream("Hello", max_tokens=4):
            assert family.models()


async def test_it_works_where_an_event_loop_is_running(engines):
    with opened() as family:
        assert family.chat("Hello", max_tokens=4).text == TEXT


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"temprature": 1}, BadRequest, "Did you mean 'temperature'?"),
        ({"stream": True}, WrongArgument, r"stream\(\) gives"),
        ({"weights": {"helpful": 7}}, BadRequest, "eft.weights.helpful: 7 is out of bounds"),
        ({"weights": {"helpful": math.nan}}, WrongArgument, "weights.helpful must be a finite number"),
        ({"model": "gpt-4"}, NotFound, "'gpt-4' is not served"),
    ],
)
def test_what_the_server_would_refuse_is_an_error_that_says_so(family, engine, fields, kind, message):
    for ask in (family.chat, lambda text, **fields: family.chat_many([text], **fields)):
        with pytest.raises(kind, match=message):
            ask("Hello", **fields)
    assert engine.asked == []


def test_what_fails_in_the_engine_is_the_error_that_a_server_would_answer(family, engine, monkeypatch):
    engine.fail_at = 1
    with pytest.raises(ServerFailed):
        family.chat("Hello")
    engine.raises = EngineDeadError()
    monkeypatch.setattr("eft_client.connection.sleep", lambda seconds: asyncio.sleep(0))
    with pytest.raises(Busy, match="the server is shutting down"):
        family.chat("Hello")


def test_prompts_where_one_is_expected_are_refused(family):
    with pytest.raises(WrongArgument, match="messages must be text or a list of objects"):
        family.chat(["a", "b"])
    with pytest.raises(WrongArgument, match="not both"):
        family.chat("a", weights={"helpful": 1}, eft={"scale": 1})


def test_the_names_that_can_be_asked_are_told(family):
    assert repr(family) == "EftClient('http://in-process/v1', model='demo')"
    names = ["demo", "demo-helpful", "demo/base", "demo/small", "demo/helpful", "demo/harmless"]
    assert [card.id for card in family.models()] == names


def test_a_key_in_the_environment_is_no_business_of_the_engines(engines, monkeypatch):
    monkeypatch.setenv("EFT_API_KEY", "kéy")
    with opened() as family:
        assert family.models()


def test_closing_stops_the_engine_once(engines):
    family = opened()
    assert engines == [True]
    family.close()
    family.close()
    assert engines == [False]
    with pytest.raises(RuntimeError, match="the client is closed"):
        family.chat("Hello")


def test_closing_aborts_what_is_under_way(engines, engine):
    engine.pause_s = 0.01
    family = opened()
    pieces = family.stream("Hello", max_tokens=400)
    next(pieces)
    errors = []

    def ask() -> None:
        try:
            family.chat("Hello", max_tokens=400)
        except RuntimeError as error:
            errors.append(str(error))

    asker = threading.Thread(target=ask)
    asker.start()
    while engine.running < 2:
        pass
    family.close()
    asker.join(30)
    assert errors == ["the client was closed while it waited for an answer"]
    assert len(engine.aborted) == 2
    assert engines == [False]
    with pytest.raises(RuntimeError, match="the client is closed"):
        next(pieces)


def test_a_client_that_is_forgotten_stops_its_engine(engines):
    family = opened()
    family.chat("Hello", max_tokens=4)
    del family
    assert engines == [False]


def test_a_client_that_is_gone_leaves_nothing_to_do_at_the_end_of_the_program(engines, monkeypatch):
    left = []
    monkeypatch.setattr(atexit, "register", left.append)
    monkeypatch.setattr(atexit, "unregister", left.remove)
    opened().close()
    gc.collect()
    assert left == []


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
        opened()
    assert [loop.is_closed() for loop in loops] == [True]


def test_the_public_surface_is_this():
    assert eft_server.__all__ == ["__version__", "load"]
