"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from eft_server.api.edge.strict_json import parse_object
from eft_server.api.requests.grammar_trial import trial_compile
from eft_server.api.requests.openapi import json_body
from eft_server.api.requests.reasoning import require_readable
from eft_server.api.requests.schemas import ChatRequest
from eft_server.api.serving.service import resolved_fields, service_of
from eft_server.api.serving.stream import answer

__all__ = ["PATH", "router"]

PATH = "/v1/chat/completions"

router = APIRouter(tags=["generation"])


@router.post(PATH, summary="Create a chat completion", openapi_extra=json_body(ChatRequest))
async def create_chat_completion(raw: Request) -> Response:
    """Answer a chat, as OpenAI does; ``eft`` sets how much of each behaviour to apply."""
    service = service_of(raw)
    payload = parse_object(await raw.body())
    request = ChatRequest.read(payload, service.config.server)
    require_readable(
        request.chat_template_kwargs, request.reasoning_effort, service.handlers.template_variables
    )
    service.require_room_for(request.bad_words)
    schemas = [tool.function.parameters or {} for tool in request.tools or ()]
    await trial_compile(request, schemas)
    resolved = service.weigh(request, payload)
    # The handler does not get the HTTP request: it would take priorities, ranks and ids from the headers.
    call = service.handlers.chat.create_chat_completion(request, None)
    extra = {"eft": resolved_fields(resolved)}
    return await answer(raw, call, extra, service.config.server.request_timeout_s, "messages")
