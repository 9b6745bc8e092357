"""The application as a transport: pieces as they are written, and who leaves is gone."""

import asyncio
import logging

import httpx
import pytest

from eft_server.api.transport import AppTransport

URL = "http://server/v1/things?a=1"


def client(app) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=AppTransport(app))


async def start(send, status=200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"x-of", b"the app")]})


async def body(send, chunk: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": more})


class Endless:
    """Writes until the client leaves; `left` says that it has heard of it."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.written = 0

    async def __call__(self, scope, receive, send) -> None:
        assert (await receive())["type"] == "http.request"
        await start(send)
        writing = asyncio.ensure_future(self.write(send))
        assert (await receive()) == {"type": "http.disconnect"}
        writing.cancel()
        await asyncio.wait((writing,))
        self.left.set()

    async def write(self, send) -> None:
        while True:
            await body(send, b"more")
            self.written += 1


async def test_a_request_arrives_as_it_was_sent() -> None:
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope, **await receive())
        await start(send, 418)
        await body(send, b"short and stout", more=False)

    async with client(app) as asking:
        answer = await asking.post(URL, content=b"a body", headers={"X-Mine": "1"})
    assert (answer.status_code, answer.text, answer.headers["x-of"]) == (418, "short and stout", "the app")
    assert (seen["type"], seen["method"], seen["path"]) == ("http.request", "POST", "/v1/things")
    assert (seen["query_string"], seen["raw_path"]) == (b"a=1", b"/v1/things")
    assert (b"x-mine", b"1") in seen["headers"]
    assert (seen["body"], seen["more_body"]) == (b"a body", False)


async def test_pieces_come_as_they_are_written() -> None:
    go_on = asyncio.Event()

    async def app(scope, receive, send):
        await start(send)
        await body(send, b"one")
        await go_on.wait()
        await body(send, b"two", more=False)

    async with client(app) as asking, asking.stream("GET", URL) as answer:
        pieces = answer.aiter_bytes()
        assert await anext(pieces) == b"one"
        go_on.set()
        assert [piece async for piece in pieces] == [b"two"]


async def test_closing_an_answer_early_is_heard_and_waited_for() -> None:
    app = Endless()
    async with client(app) as asking:
        async with asking.stream("GET", URL) as answer:
            assert await anext(answer.aiter_bytes()) == b"more"
            assert not app.left.is_set()
        assert app.left.is_set()


async def test_an_answer_that_is_not_read_is_not_written_any_further() -> None:
    app = Endless()
    async with client(app) as asking, asking.stream("GET", URL):
        for _ in range(1000):
            await asyncio.sleep(0)
        assert 1 < app.written < 100
    assert app.left.is_set()


async def test_cancelling_before_the_answer_begins_is_leaving_too() -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        begun.set()
        await receive()
        left.set()

    async with client(app) as asking:
        asked = asyncio.ensure_future(asking.get(URL))
        await begun.wait()
        asked.cancel()
        await asyncio.wait((asked,))
        assert asked.cancelled() and left.is_set()


async def test_closing_the_transport_leaves_every_request() -> None:
    apps, reading = [Endless(), Endless()], []

    async def app(scope, receive, send):
        await apps[int(scope["path"][1:])](scope, receive, send)

    asking = client(app)
    for number in range(2):
        request = asking.build_request("GET", f"http://server/{number}")
        answer = await asking.send(request, stream=True)
        reading.append(answer.aiter_bytes())
        await anext(reading[-1])
    await asking.aclose()
    assert all(app.left.is_set() for app in apps)


async def test_an_application_that_fails_is_a_500_and_is_logged(caplog) -> None:
    async def app(scope, receive, send):
        raise KeyError("a fault of ours")

    with caplog.at_level(logging.ERROR):
        async with client(app) as asking:
            assert (await asking.get(URL)).status_code == 500
    assert "a fault of ours" in caplog.text


@pytest.mark.parametrize("fails", [True, False])
async def test_an_answer_that_breaks_off_is_no_whole_one(fails) -> None:
    async def app(scope, receive, send):
        await start(send)
        await body(send, b"one")
        if fails:
            raise KeyError

    async with client(app) as asking, asking.stream("GET", URL) as answer:
        pieces = answer.aiter_bytes()
        assert await anext(pieces) == b"one"
        with pytest.raises(httpx.ReadError, match="broke off"):
            await anext(pieces)
