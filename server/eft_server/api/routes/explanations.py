"""POST /v1/eft/explain."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from eft_server.api.edge.strict_json import parse_object
from eft_server.api.requests.openapi import json_body
from eft_server.api.requests.schemas import ExplainRequest
from eft_server.api.scoring.explanations import ExplainAnswer, explain
from eft_server.api.serving.service import Service, service_of
from eft_server.api.serving.stream import answer
from eft_server.behaviour.resolve import Resolved

__all__ = ["PATH", "router"]

PATH = "/v1/eft/explain"

router = APIRouter(tags=["scores"])


@router.post(
    PATH,
    summary="Explain a completion token by token",
    openapi_extra=json_body(ExplainRequest),
    responses={
        200: {"model": ExplainAnswer, "description": "The completion's tokens, each with its reasons."}
    },
)
async def create_explanation(raw: Request) -> Response:
    """For each token what was likely, what each expert added, and what would have been said without it."""
    service = service_of(raw)
    payload = parse_object(await raw.body())
    request = ExplainRequest.read(payload, service.config.server)
    resolved = service.weigh(request, payload)
    call = _response(service, request, resolved)
    field = "messages" if request.messages is not None else "prompt"
    return await answer(raw, call, {}, service.config.server.request_timeout_s, field)


async def _response(service: Service, request: ExplainRequest, resolved: Resolved) -> Response:
    return Response(await explain(service, request, resolved), media_type="application/json")
