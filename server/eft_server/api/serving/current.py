"""The request that is being answered, for code that vLLM's handlers call without passing it."""

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eft_server.behaviour.report import Report
from eft_server.behaviour.resolve import Resolved

__all__ = ["CurrentRequest", "RequestScope", "current"]

_HEADER = "x-request-id"
_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass
class CurrentRequest:
    """One HTTP request, from its first byte to the last of its answer.

    Attributes:
        id: The client's `X-Request-Id`, or one of ours; it is in the response and in the log.
        key: A digest of its API key; empty where no key is needed.
        resolved: Its behaviour, once it has been resolved.
        counting: The places of the members that contribute to it; None before they are known.
        member_prompts: Its per-member prompts, by place; other members read the shared prompt.
        rendered: Every member's prompt as token ids, which accompany the engine's prompt; None if all read the same.
        report: What its tokens tell, if it asks for that.
    """

    id: str = field(default_factory=lambda: f"req_{uuid4().hex}")
    key: str = ""
    resolved: Resolved | None = None
    counting: frozenset[int] | None = None
    member_prompts: Mapping[int, Any] = field(default_factory=dict)
    rendered: Sequence[Sequence[int]] | None = None
    report: Report | None = None


_current: ContextVar[CurrentRequest] = ContextVar("current")


def current() -> CurrentRequest:
    """The request of this task; a new one outside any request, as when vLLM's handlers are warmed up."""
    return _current.get(None) or CurrentRequest()


class RequestScope:
    """ASGI middleware: sets the current request for the application, and puts its id into every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(_HEADER, "")
        request = CurrentRequest(given) if _ACCEPTED_ID.fullmatch(given) else CurrentRequest()
        _current.set(request)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_HEADER] = request.id
            await send(message)

        await self.app(scope, receive, send_with_id)
