"""POST /v1/eft/score."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from eft_server.api.edge.strict_json import parse_object
from eft_server.api.requests.openapi import json_body
from eft_server.api.requests.schemas import ScoreRequest
from eft_server.api.scoring.scores import ScoreAnswer, score
from eft_server.api.serving.json_pieces import written
from eft_server.api.serving.service import Service, service_of
from eft_server.api.serving.stream import answer
from eft_server.behaviour.resolve import Resolved

__all__ = ["PATH", "router"]

PATH = "/v1/eft/score"

router = APIRouter(tags=["scores"])


@router.post(
    PATH,
    summary="Score given completions",
    openapi_extra=json_body(ScoreRequest),
    responses={200: {"model": ScoreAnswer, "description": "The scores, in the order of the items."}},
)
async def create_score(raw: Request) -> Response:
    """Log-probabilities of given completions under the composite and its members; nothing is generated."""
    service = service_of(raw)
    payload = parse_object(await raw.body())
    request = ScoreRequest.read(payload, service.config.server)
    resolved = service.weigh(request, payload)
    call = _written(service, request, resolved)
    return await answer(raw, call, {}, service.config.server.request_timeout_s)


async def _written(service: Service, request: ScoreRequest, resolved: Resolved) -> Response:
    """Megabytes of numbers are serialised in another thread, so that other requests' streams go on."""
    scores = await score(service, request, resolved)
    return Response(await asyncio.to_thread(written, scores), media_type="application/json")
