"""A server of the test's own on a real socket: its answers say what it was asked, as slowly as the test wants."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .scripted import MODELS, chunk, event

USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}})


class Talker:
    """Streams what `say` makes of a request's body.

    "WAIT" among the pieces stays silent until the client leaves; "THINK …" is thought, and not said.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.say: Callable[[dict[str, Any]], list[str]] = lambda body: [body["messages"][-1]["content"]]
        self.url = ""
        self.left = threading.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                headers = head.decode().lower()
                length = int(headers.partition("content-length:")[2].split("\r\n")[0] or 0)
                body = await reader.readexactly(length)
                if head.startswith(b"GET"):
                    writer.write(answer(200, MODELS))
                else:
                    await self.answer_chat(json.loads(body), reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer_chat(
        self, body: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.bodies.append(body)
        pieces = self.say(body)
        if pieces and pieces[0].startswith("REFUSE "):
            writer.write(answer(400, {"error": {"message": pieces[0].removeprefix("REFUSE ")}}))
            return
        weights = body.get("eft", {}).get("weights", {"helpful": 0.5, "harmless": 0.25})
        eft = {"model": body["model"], "weights": weights, "scale": 1.0, "amplify": 1.0, "filter": None}
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        send(writer, chunk("", eft=eft))
        for piece in pieces:
            if piece == "WAIT":
                await writer.drain()
                await reader.read(1)
                self.left.set()
                raise ConnectionResetError
            send(
                writer, thought(piece.removeprefix("THINK ")) if piece.startswith("THINK ") else chunk(piece)
            )
        send(writer, chunk("", finish="stop") + USAGE + event("[DONE]"))
        writer.write(b"0\r\n\r\n")


def answer(status: int, body: Any) -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(content),
        content,
    )


def thought(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"reasoning_content": text, "content": None}}]})


def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


@contextmanager
def talking() -> Iterator[Talker]:
    """A talker that listens on a free port."""
    talker = Talker()
    ready, over = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        async with await asyncio.start_server(talker.serve, "127.0.0.1", 0) as server:
            talker.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    ready.wait(30)
    try:
        yield talker
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)
        loop.close()
