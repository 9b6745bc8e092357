"""The synchronous face: the same client, waited for."""

import asyncio
import gc
import inspect
import subprocess
import sys
import threading

import httpx
import pytest

from eft_client import AsyncEftClient, BadRequest, EftClient, WrongArgument

from .scripted import CHAT, MODELS, Chunks, Script, chunk, event, refusal, streamed, streaming

DONE = event("[DONE]")


def client(*answers, **options) -> EftClient:
    return EftClient("http://server/v1", model="demo", transport=Script(*answers), **options)


def threads() -> int:
    return sum(thread.name == "eft-client" for thread in threading.enumerate())


def test_calls_answer_without_await() -> None:
    with client(httpx.Response(200, json=CHAT)) as asking:
        assert asking.chat("Hi").text == "Hello!"
    with client(httpx.Response(200, json=MODELS)) as asking:
        assert [card.id for card in asking.models()] == ["demo", "demo-careful", "demo/base"]
        assert asking.behaviours()["helpful"].max == 2.0


def test_errors_are_the_same() -> None:
    with client(refusal(400, "no")) as asking:
        with pytest.raises(BadRequest, match="no"):
            asking.chat("Hi")
        with pytest.raises(WrongArgument):
            asking.chat("Hi", scale=float("nan"))
        with pytest.raises(WrongArgument):
            asking.stream("Hi", scale=float("nan"))
        with pytest.raises(WrongArgument, match=r"stream\(\) gives"):
            asking.chat("Hi", stream=True)


def test_a_stream_is_an_ordinary_iterator() -> None:
    with client(streamed(chunk("Hel"), chunk("lo"), DONE)) as asking:
        assert [piece.text for piece in asking.stream("Hi")] == ["Hel", "lo"]


def test_leaving_a_loop_closes_the_connection() -> None:
    body = Chunks(chunk("Hel"), chunk("lo"), then_wait=asyncio.Event().wait)
    with client(streaming(body)) as asking:
        for piece in asking.stream("Hi"):
            assert piece.text == "Hel"
            break
        assert body.closed


async def test_it_works_where_an_event_loop_is_running() -> None:
    with client(httpx.Response(200, json=CHAT)) as asking:
        assert asking.chat("Hi").text == "Hello!"


def test_it_works_from_many_threads() -> None:
    texts = []
    with client(lambda _request: httpx.Response(200, json=CHAT)) as asking:
        workers = [threading.Thread(target=lambda: texts.append(asking.chat("Hi").text)) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert texts == ["Hello!"] * 8


def test_closing_ends_the_thread_and_may_be_repeated() -> None:
    before = threads()
    asking = client(httpx.Response(200, json=CHAT))
    assert threads() == before + 1
    asking.close()
    asking.close()
    assert threads() == before
    with pytest.raises(RuntimeError, match="the client is closed"):
        asking.chat("Hi")


def test_who_forgets_to_close_leaves_no_thread_behind() -> None:
    before = threads()
    asking = client(httpx.Response(200, json=CHAT))
    asking.chat("Hi")
    del asking
    gc.collect()
    assert threads() == before


def test_a_client_that_is_collected_in_its_own_thread_leaves_none_behind() -> None:
    held = [client(httpx.Response(200, json=CHAT))]
    held[0].chat("Hi")
    thread = held[0]._thread

    async def forget() -> None:
        held.clear()
        gc.collect()

    asyncio.run_coroutine_threadsafe(forget(), thread._loop)
    thread._thread.join(timeout=5)
    assert not thread._thread.is_alive()


def test_a_stream_may_be_closed_after_its_client() -> None:
    body = Chunks(chunk("Hel"), then_wait=asyncio.Event().wait)
    asking = client(streaming(body))
    pieces = asking.stream("Hi")
    next(pieces)
    asking.close()
    pieces.close()
    assert body.closed


def test_a_stream_holds_its_client() -> None:
    before = threads()
    pieces = client(streamed(chunk("Hel"), chunk("lo"), DONE)).stream("Hi")
    gc.collect()
    assert [piece.text for piece in pieces] == ["Hel", "lo"]
    del pieces
    gc.collect()
    assert threads() == before


def test_a_client_that_is_closed_closes_its_streams_and_reports_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class SlowToClose(Chunks):
        async def aclose(self) -> None:
            await asyncio.sleep(0.01)  # As a socket is.
            await super().aclose()

    for _ in range(8):  # In what order iterators are closed that nobody orders is chance.
        body = SlowToClose(chunk("Hel"), then_wait=asyncio.Event().wait)
        asking = client(streaming(body))
        pieces = asking.stream("Hi")
        next(pieces)
        asking.close()
        assert body.closed
    assert caplog.messages == []


def test_closing_the_client_frees_who_waits_for_a_piece() -> None:
    waiting, freed = threading.Event(), threading.Event()

    async def silence() -> None:
        waiting.set()
        await asyncio.Event().wait()

    asking = client(streaming(Chunks(chunk("Hel"), then_wait=silence)))

    def read() -> None:
        try:
            list(asking.stream("Hi"))
        except BaseException:
            freed.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert waiting.wait(30)
    asking.close()
    reader.join(30)
    assert freed.is_set()


INTERRUPTED = """
import asyncio, signal, os
import httpx
from eft_client import EftClient
closed = []
class Body(httpx.AsyncByteStream):
    async def __aiter__(self):
        yield b'data: {"choices": [{"delta": {"content": "Hel"}}]}\\n\\n'
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
    async def aclose(self):
        await asyncio.sleep(0)
        closed.append(True)
def answer(request):
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Body())
with EftClient(model="demo", transport=httpx.MockTransport(answer)) as client:
    try:
        for piece in client.stream("Hi"):
            print(piece.text)
    except KeyboardInterrupt:
        print("interrupted", closed)
"""


class Entered(Script):
    """Notes the loops in which it is entered, used and closed."""

    def __init__(self, *answers) -> None:
        super().__init__(*answers)
        self.loops = []

    async def __aenter__(self):
        self.loops.append(asyncio.get_running_loop())
        return self

    async def handle_async_request(self, request):
        self.loops.append(asyncio.get_running_loop())
        return await super().handle_async_request(request)

    async def aclose(self) -> None:
        self.loops.append(asyncio.get_running_loop())


def test_a_transport_is_entered_used_and_closed_in_one_loop() -> None:
    transport = Entered(httpx.Response(200, json=CHAT))
    with EftClient(model="demo", transport=transport) as asking:
        assert len(transport.loops) == 1
        asking.chat("Hi")
    assert len(transport.loops) == 3
    assert len(set(transport.loops)) == 1


def test_a_transport_that_cannot_be_entered_leaves_no_thread_behind() -> None:
    class Broken(Entered):
        async def __aenter__(self):
            raise OSError("no memory")

    before, transport = threads(), Broken()
    with pytest.raises(OSError, match="no memory"):
        EftClient(model="demo", transport=transport)
    assert threads() == before
    assert len(transport.loops) == 1  # It is closed all the same.


def test_what_is_under_way_ends_before_the_transport_closes() -> None:
    waiting, ends = threading.Event(), []

    class Slow(Entered):
        async def handle_async_request(self, request):
            try:
                waiting.set()
                await asyncio.Event().wait()
            finally:
                ends.append("request")

        async def aclose(self) -> None:
            await asyncio.sleep(0)
            ends.append("transport")

    asking = EftClient(model="demo", transport=Slow())
    errors = []

    def ask() -> None:
        try:
            asking.chat("Hi")
        except RuntimeError as error:
            errors.append(str(error))

    asker = threading.Thread(target=ask)
    asker.start()
    assert waiting.wait(30)
    asking.close()
    asker.join(30)
    assert errors == ["the client was closed while it waited for an answer"]
    assert ends == ["request", "transport"]


def test_an_interrupted_wait_closes_the_connection() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split("\n") == ["Hel", "interrupted [True]", ""], done.stderr
    assert done.stderr == ""


def test_an_interruption_just_before_the_wait_closes_the_connection_too(monkeypatch) -> None:
    waiting = threading.Event()

    async def silence() -> None:
        waiting.set()
        await asyncio.Event().wait()

    body = Chunks(chunk("Hel"), then_wait=silence)
    with client(streaming(body)) as asking:
        pieces = asking.stream("Hi")
        next(pieces)
        start = asyncio.run_coroutine_threadsafe

        def interrupted(work, loop):
            monkeypatch.undo()
            start(work, loop)
            assert waiting.wait(30)
            raise KeyboardInterrupt

        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(pieces)
        assert body.closed


def test_the_two_faces_say_the_same() -> None:
    batches = ("chat_many", "complete_many", "answer_many")
    for name in ("chat", "stream", "complete", *batches, "score", "models", "behaviours"):
        ours, theirs = getattr(EftClient, name), getattr(AsyncEftClient, name)
        assert inspect.signature(ours) == inspect.signature(theirs)
        assert ours.__doc__ == theirs.__doc__


def test_it_shows_where_it_asks_and_no_key() -> None:
    with EftClient("http://server", "sk-secret", transport=Script(httpx.Response(200))) as asking:
        assert repr(asking) == "EftClient('http://server/v1', model=None)"
