"""The servers of a study: one client for each, and a bound on how many requests are under way."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

import httpx

from eft_client import AsyncEftClient
from eft_client.quality.errors import StudyError
from eft_client.settings import Setting

__all__ = ["Job", "Servers", "run_bounded"]

Job = Callable[[], Awaitable[None]]


class Servers:
    """A client for every server and key that settings name; use it as an asynchronous context.

    Args:
        timeout_s: how long one request may take.
        retries: how often a busy server or a broken connection is tried again.
        transport: what carries requests in place of the network, for tests.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 600.0,
        retries: int = 8,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._retries = retries
        self._transport = transport
        self._clients: dict[tuple[str, str | None], AsyncEftClient] = {}
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def client(self, setting: Setting) -> AsyncEftClient:
        """The client for a setting's server."""
        known = (setting.url, setting.api_key)
        if known not in self._clients:
            client = AsyncEftClient(
                *known, timeout_s=self._timeout_s, retries=self._retries, transport=self._transport
            )
            self._clients[known] = await self._open.enter_async_context(client)
        return self._clients[known]

    async def named(self, settings: Sequence[Setting]) -> list[Setting]:
        """The settings with a model each: where one names none, the first that its server lists.

        Raises:
            StudyError: A server lists none.
            EftError: It does not answer.
        """
        return [setting if setting.model else await self._with_model(setting) for setting in settings]

    async def _with_model(self, setting: Setting) -> Setting:
        models = await (await self.client(setting)).models()
        if not models:
            raise StudyError(f"{setting.url} lists no model; name one for {setting.name!r}")
        return replace(setting, model=models[0].id)


async def run_bounded(jobs: Iterable[Job], most: int) -> None:
    """Run jobs, at most `most` at a time, in their order; the first error cancels the rest and is raised."""
    left = iter(jobs)

    async def work() -> None:
        for job in left:
            await job()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(most):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
