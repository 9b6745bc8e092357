"""The synchronous face of the client: every call runs in an event loop in a separate thread."""

import asyncio
import concurrent.futures
import functools
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
from typing_extensions import override

from eft_client.client import AsyncEftClient
from eft_client.connection import MAX_CONNECTIONS
from eft_client.settings import DEFAULT_URL

__all__ = ["EftClient"]

P = ParamSpec("P")
T = TypeVar("T")


class _ClosedError(RuntimeError):
    """There is no loop to run anything any more."""


class _LoopThread:
    """An event loop in a daemon thread, so that it also serves callers who run one themselves (notebooks do)."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._open = True
        # Nothing is begun after the end was: it would never be run, and its caller wait for ever.
        self._door = threading.Lock()
        self._calls = weakref.WeakSet[concurrent.futures.Future[Any]]()
        self._iterators = weakref.WeakSet[AsyncGenerator[Any, None]]()
        self._thread = threading.Thread(target=self._run, name="eft-client", daemon=True)
        self._thread.start()

    @property
    def is_own(self) -> bool:
        """Whether the caller is in this thread, and so must not wait for it."""
        return threading.current_thread() is self._thread

    @property
    def is_open(self) -> bool:
        """Whether anything can be run: not after `close`, and not in a forked process."""
        return self._open and self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for the work's result; an interruption of the caller (Ctrl-C) cancels the work.

        Raises:
            RuntimeError: The client is closed, or was closed meanwhile.
        """
        future = None
        try:
            future = self.start(work)
            return future.result()
        except concurrent.futures.CancelledError:
            raise _ClosedError("the client was closed while it waited for an answer") from None
        except BaseException:
            if future is not None:
                future.cancel()
            raise

    def start(self, work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        """Have the work done, without waiting for it.

        Raises:
            RuntimeError: The client is closed.
        """
        with self._door:
            if self.is_open:
                call = asyncio.run_coroutine_threadsafe(work, self._loop)
                self._calls.add(call)
                return call
        work.close()
        raise _ClosedError("the client is closed, or of another process: make one in each process")

    def opened(self, items: AsyncGenerator[Any, None]) -> None:
        """Close this iterator, too, when the thread ends."""
        with self._door:
            self._iterators.add(items)

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancel the calls that are under way, do this last thing, and end the thread."""
        with self._door:
            self._open = False
            for call in list(self._calls):
                call.cancel()
            ending = asyncio.run_coroutine_threadsafe(_wound_up(last, list(self._iterators)), self._loop)
        ending.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))
        if self.is_own:  # The garbage collector runs where it likes.
            return
        try:
            ending.result()
        finally:
            self._thread.join()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()


async def _wound_up(last: Coroutine[Any, Any, None], iterators: Sequence[AsyncGenerator[Any, None]]) -> None:
    """Leave no task waiting and no iterator open in this loop."""
    try:
        await last
    finally:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # The outermost, which close those inside them: asyncio would close all at once, and report those in each
        # other's way.
        await asyncio.gather(*(items.aclose() for items in iterators), return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()


def _shut(thread: _LoopThread, client: AsyncEftClient) -> None:
    """Close the client and end its thread, wherever this is called from."""
    if thread.is_open:
        thread.close(client.aclose())


def _waiting(
    method: Callable[Concatenate[AsyncEftClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["EftClient", P], T]:
    """The method of the asynchronous client, waited for."""

    @functools.wraps(method)
    def call(self: "EftClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.run(method(self._client, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[AsyncEftClient, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate["EftClient", P], Generator[T, None, None]]:
    """The method of the asynchronous client, its iterator an ordinary one."""

    @functools.wraps(method)
    def call(self: "EftClient", /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        items = method(self._client, *args, **kwargs)
        self._thread.opened(items)
        return _drawn(self, items)

    return call


def _drawn(client: "EftClient", items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """The items one by one. This holds the client: nobody else may, and it would be closed while they are drawn."""
    thread = client._thread
    turn = asyncio.Lock()
    waiting: asyncio.Task[Any] | None = None

    async def following() -> tuple[T] | None:
        nonlocal waiting
        async with turn:
            waiting = asyncio.current_task()
            try:
                return (await anext(items),)
            except StopAsyncIteration:
                return None
            finally:
                waiting = None

    async def closed() -> None:
        # An interrupted wait may not have been cancelled yet; one that was, and is ending, is left to end.
        if waiting is not None and not waiting.cancelling():
            waiting.cancel()
        async with turn:
            await items.aclose()

    try:
        while found := thread.run(following()):
            yield found[0]
    finally:
        # A client that is closed has closed its iterators.
        with suppress(_ClosedError, concurrent.futures.CancelledError):
            ending = thread.start(closed())
            if not thread.is_own:
                ending.result()


class EftClient:
    """AsyncEftClient, waited for: the same arguments, results and errors, without `await`.

    Works in threads, and in a notebook whose event loop is running. `stream` is an ordinary iterator.
    """

    def __init__(  # noqa: PLR0913 (one for each option)
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        model: str | None = None,
        timeout_s: float = 600.0,
        retries: int = 4,
        max_connections: int = MAX_CONNECTIONS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncEftClient(
            base_url,
            api_key,
            model=model,
            timeout_s=timeout_s,
            retries=retries,
            max_connections=max_connections,
            transport=transport,
        )
        self._thread = _LoopThread()
        # A client that nobody closes leaves no thread behind.
        self._finalizer = weakref.finalize(self, _shut, self._thread, self._client)
        try:
            self._thread.run(self._client.__aenter__())
        except BaseException:
            self.close()
            raise

    chat = _waiting(AsyncEftClient.chat)
    stream = _iterating(AsyncEftClient.stream)
    complete = _waiting(AsyncEftClient.complete)
    chat_many = _waiting(AsyncEftClient.chat_many)
    complete_many = _waiting(AsyncEftClient.complete_many)
    answer_many = _waiting(AsyncEftClient.answer_many)
    score = _waiting(AsyncEftClient.score)
    explain = _waiting(AsyncEftClient.explain)
    models = _waiting(AsyncEftClient.models)
    behaviours = _waiting(AsyncEftClient.behaviours)

    def close(self) -> None:
        """Close every connection, and end the thread; the client is of no use afterwards."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @override
    def __repr__(self) -> str:
        return repr(self._client).replace("AsyncEftClient", "EftClient", 1)
