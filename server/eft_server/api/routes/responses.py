"""POST /v1/responses."""

from collections.abc import AsyncGenerator, Awaitable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.types.responses import FunctionTool
from pydantic import BaseModel
from vllm.entrypoints.openai.responses.protocol import StreamingResponsesResponse

from eft_server.api.edge.errors import from_exception
from eft_server.api.edge.strict_json import parse_object
from eft_server.api.requests.grammar_trial import trial_compile
from eft_server.api.requests.openapi import json_body
from eft_server.api.requests.reasoning import require_readable
from eft_server.api.requests.schemas import ResponseRequest
from eft_server.api.serving.current import current
from eft_server.api.serving.events import event_of
from eft_server.api.serving.nulls import without_foreign_nulls
from eft_server.api.serving.service import resolved_fields, service_of
from eft_server.api.serving.stream import answer, outcome, reported
from eft_server.behaviour.report import Report

__all__ = ["PATH", "router"]

PATH = "/v1/responses"

router = APIRouter(tags=["generation"])

Events = AsyncGenerator[StreamingResponsesResponse, None]

_LAST = ("response.completed", "response.incomplete")
_BEFORE_THE_ENGINE = ("response.created", "response.in_progress")


@router.post(PATH, summary="Create a response", openapi_extra=json_body(ResponseRequest))
async def create_response(raw: Request) -> Response:
    """Answer as OpenAI's responses do; ``eft`` sets how much of each behaviour to apply. Nothing is stored."""
    service = service_of(raw)
    payload = parse_object(await raw.body())
    request = ResponseRequest.read(payload, service.config.server)
    effort = request.reasoning.effort if request.reasoning else None
    variables = service.handlers.template_variables
    require_readable(request.chat_template_kwargs, effort, variables, "reasoning.effort")
    await trial_compile(
        request, [tool.parameters or {} for tool in request.tools if isinstance(tool, FunctionTool)]
    )
    resolved = service.weigh(request, payload)
    # The handler does not get the HTTP request: it would take priorities, ranks and ids from the headers.
    call = service.handlers.responses.create_responses(request, None)
    extra = {"eft": resolved_fields(resolved)}
    told = _with_text_events(call, extra)
    return await answer(raw, told, {}, service.config.server.request_timeout_s, "input")


async def _with_text_events(
    call: Awaitable[Any], extra: dict[str, Any]
) -> BaseModel | AsyncGenerator[str, None]:
    """The handler's response, or its events as text, with `extra` in every response object; the last has the report."""
    report = current().report
    result = await outcome(call)
    if isinstance(result, BaseModel):
        return _marked(result, reported(extra, report))
    return _texts(_with_truncation(result), extra, report)


def _marked(response: Any, extra: dict[str, Any]) -> BaseModel:
    # vLLM's models accept and serialise fields that they do not declare.
    for name, value in extra.items():
        setattr(response, name, value)
    if response.status == "incomplete" and response.output:
        response.output[-1].status = "incomplete"
    marked: BaseModel = response
    return marked


async def _with_truncation(events: Events) -> AsyncGenerator[dict[str, Any], None]:
    """The events as JSON objects, whose last ones report a truncated response; vLLM's always report completion.

    An item's end is held back until the next event shows whether it was truncated.
    """
    waiting: dict[str, Any] | None = None
    try:
        async for said in events:
            event = said.model_dump(mode="json", by_alias=True)
            cut = event["type"] == "response.completed" and event["response"]["status"] == "incomplete"
            if cut:
                event["type"] = "response.incomplete"
                for item in (*event["response"]["output"][-1:], *([waiting["item"]] if waiting else ())):
                    item["status"] = "incomplete"
            if waiting:
                yield waiting
            waiting = event if event["type"] == "response.output_item.done" else None
            if not waiting:
                yield event
    finally:
        await events.aclose()


async def _texts(
    events: AsyncGenerator[dict[str, Any], None], extra: dict[str, Any], report: Report | None
) -> AsyncGenerator[str, None]:
    """Hold back the events that vLLM sends before it calls the engine, so that a refusal keeps its status."""
    held = ""
    try:
        async for event in events:
            if "response" in event:
                event["response"] |= reported(extra, report) if event["type"] in _LAST else extra
            text = event_of(without_foreign_nulls(event), event["type"])
            if event["type"] in _BEFORE_THE_ENGINE:
                held += text
            else:
                yield held + text
                held = ""
    except Exception as exc:
        raise from_exception(exc) from exc
    finally:
        await events.aclose()
