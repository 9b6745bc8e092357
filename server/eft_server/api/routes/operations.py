"""GET /livez, /readyz, /health, /metrics and /version: for operators and the hosts that run the server."""

from importlib.metadata import version

import vllm
from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from vllm.v1.metrics.prometheus import get_prometheus_registry

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.deadlines import UnderWay
from eft_server.api.edge.metrics import READY
from eft_server.api.serving.service import service_of

__all__ = ["router"]

router = APIRouter(tags=["operations"])


class _NotWellError(ApiError):
    """A probe's answer: no request was refused."""

    counted = False


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Does the engine live?")
@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Does the engine live? (vLLM's name for it)")
async def live(raw: Request) -> dict[str, str]:
    """200 while the engine's processes run and answer, else 503: the server should be restarted. Needs no API key."""
    problem = service_of(raw).pulse.problem()
    if problem is not None:
        raise _NotWellError(f"Not alive: {problem}.", status=503)
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Are requests welcome?")
async def ready(raw: Request) -> dict[str, str]:
    """200 while requests are let in, 503 while the server is stopping or its engine is lost. Needs no API key."""
    if refusal := _under_way(raw).refusal:
        raise _NotWellError(str(refusal), status=503, headers={"Retry-After": "5"})
    return await live(raw)


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(raw: Request) -> Response:
    """The engine's counters, gauges and histograms, and the server's."""
    READY.set(_under_way(raw).refusal is None and service_of(raw).pulse.problem() is None)
    return Response(generate_latest(get_prometheus_registry()), media_type=CONTENT_TYPE_LATEST)


@router.get("/version", summary="Versions")
async def versions() -> dict[str, str]:
    """The versions of this server and of vLLM."""
    return {"version": version("eft-server"), "vllm": vllm.__version__}


def _under_way(raw: Request) -> UnderWay:
    under_way: UnderWay = raw.app.state.under_way
    return under_way
