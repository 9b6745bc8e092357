"""POST /v1/completions."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from eft_server.api.edge.strict_json import parse_object
from eft_server.api.requests.grammar_trial import trial_compile
from eft_server.api.requests.openapi import json_body
from eft_server.api.requests.schemas import TextRequest
from eft_server.api.serving.service import resolved_fields, service_of
from eft_server.api.serving.stream import answer

__all__ = ["PATH", "router"]

PATH = "/v1/completions"

router = APIRouter(tags=["generation"])


@router.post(PATH, summary="Create a text completion", openapi_extra=json_body(TextRequest))
async def create_completion(raw: Request) -> Response:
    """Continue text or token ids, as OpenAI does; ``eft`` sets how much of each behaviour to apply."""
    service = service_of(raw)
    payload = parse_object(await raw.body())
    request = TextRequest.read(payload, service.config.server)
    service.require_room_for(request.bad_words)
    await trial_compile(request)
    resolved = service.weigh(request, payload)
    # The handler does not get the HTTP request: it would take priorities, ranks and ids from the headers.
    call = service.handlers.completion.create_completion(request, None)
    extra = {"eft": resolved_fields(resolved)}
    return await answer(raw, call, extra, service.config.server.request_timeout_s)
