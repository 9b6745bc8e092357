"""From a vLLM handler's result to an HTTP response: whole or as a stream, until the client disconnects."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send
from typing_extensions import override
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import listen_for_disconnect

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.deadlines import Deadline, UnderWay
from eft_server.api.edge.errors import PROMPT, from_exception, from_vllm
from eft_server.api.edge.metrics import count_error
from eft_server.api.serving.current import current
from eft_server.api.serving.events import event_of, payload_of
from eft_server.api.serving.nulls import event_without_foreign_nulls, without_foreign_nulls
from eft_server.behaviour.report import Report

__all__ = ["answer", "outcome", "reported"]

T = TypeVar("T")
Events = AsyncGenerator[str, None]
Call = Coroutine[Any, Any, BaseModel | Response | Events]

_DONE = "data: [DONE]\n\n"
_ERROR_EVENT = 'data: {"error"'
_END = '"finish_reason":"'
"""In an event that ends a choice; in a string, its quotes would be escaped."""

_CLIENT_CLOSED = 499


async def answer(
    raw: Request, call: Call, extra: dict[str, Any], timeout_s: float, prompt: str = PROMPT
) -> Response:
    """Run a handler and answer with its result and the fields `extra`; a finished Response is passed on unchanged.

    Errors about the prompt name the field `prompt`. A stream carries `extra` only in its first event, and again, with
    the report, in the one that ends its last choice, if the current request asks for a report. It starts only with its
    first event, so a request that the engine refuses still gets its HTTP status. When the client disconnects, the
    engine's work is aborted.
    """
    report = current().report if extra else None
    late = ApiError(f"The request took longer than {timeout_s:g} seconds and was ended.", status=504)
    under_way: UnderWay = raw.app.state.under_way
    deadline = under_way.deadline(timeout_s, late)
    work = asyncio.ensure_future(_naming(_start(call, deadline), prompt))
    if not await _finished_before_disconnect(raw, work):
        return Response(status_code=_CLIENT_CLOSED)
    result = work.result()
    if isinstance(result, Response):
        return result
    if isinstance(result, BaseModel):
        return JSONResponse(
            without_foreign_nulls(result.model_dump(mode="json", by_alias=True)) | reported(extra, report)
        )
    first, events = result
    relayed = _relay(_with_fields(first, extra) if extra else first, events, deadline)
    return _EventStream(relayed if report is None else _with_report(relayed, extra, report))


def reported(extra: dict[str, Any], report: Report | None) -> dict[str, Any]:
    """The fields of a complete answer: those of an answer, whose object `eft` has the report, if there is one."""
    return extra if report is None else extra | {"eft": extra["eft"] | {"report": report.fields}}


async def outcome(call: Awaitable[Any]) -> Any:
    """Await a vLLM handler.

    Raises:
        ApiError: The handler raised or returned an error.
    """
    try:
        result = await call
    except Exception as exc:
        raise from_exception(exc) from exc
    if isinstance(result, ErrorResponse):
        raise from_vllm(result)
    return result


async def _naming(start: Coroutine[Any, Any, T], prompt: str) -> T:
    try:
        return await start
    except ApiError as error:
        error.param = prompt if error.param == PROMPT else error.param
        raise


async def _start(call: Call, deadline: Deadline) -> BaseModel | Response | tuple[str, Events]:
    result = await deadline.wait_for(outcome(call))
    if isinstance(result, BaseModel | Response):
        return result
    events: Events = result
    try:
        first = await deadline.wait_for(anext(events))
        if first.startswith(_ERROR_EVENT):
            raise _error_in(first)
    except BaseException:
        await events.aclose()
        raise
    return first, events


async def _finished_before_disconnect(raw: Request, work: "asyncio.Task[Any]") -> bool:
    gone = asyncio.ensure_future(listen_for_disconnect(raw))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))
            if not work.cancelled():
                work.exception()  # vLLM's handlers turn the cancellation into an error, which is dropped here.


async def _relay(first: str, events: Events, deadline: Deadline) -> Events:
    yield event_without_foreign_nulls(first)
    try:
        while True:
            event = await deadline.wait_for(anext(events))
            yield (
                _error_event(_error_in(event))
                if event.startswith(_ERROR_EVENT)
                else event_without_foreign_nulls(event)
            )
    except StopAsyncIteration:
        return
    except ApiError as error:
        yield _error_event(error)
        yield _DONE
    finally:
        await events.aclose()


async def _with_report(events: Events, extra: dict[str, Any], report: Report) -> Events:
    """The events; the one that ends the last choice has the report."""
    ended = 0
    try:
        async for event in events:
            if _END not in event:
                yield event
                continue
            payload = payload_of(event)
            ended += sum(bool(choice.get("finish_reason")) for choice in payload["choices"])
            yield event_of(payload | reported(extra, report)) if ended == report.choices else event
    finally:
        await events.aclose()


class _EventStream(StreamingResponse):
    """Server-sent events whose source is closed when the client disconnects, not when garbage is collected."""

    def __init__(self, events: Events) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._events = events

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


def _with_fields(event: str, extra: dict[str, Any]) -> str:
    return event_of(payload_of(event) | extra)


def _error_event(error: ApiError) -> str:
    count_error(error.status, error.code)
    return event_of(error.body())


def _error_in(event: str) -> ApiError:
    return from_vllm(ErrorResponse.model_validate(payload_of(event)))
