"""GET /health, /metrics and /version: for operators."""

from importlib.metadata import version

import vllm
from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.prometheus import get_prometheus_registry

from eft_server.api.edge.errors import ApiError
from eft_server.api.serving.service import service_of

__all__ = ["router"]

router = APIRouter(tags=["operations"])


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Is the engine alive?")
async def health(raw: Request) -> dict[str, str]:
    """200 while the engine runs, 503 once it has stopped. Needs no API key."""
    try:
        await service_of(raw).engine.check_health()
    except EngineDeadError as exc:
        raise ApiError("The engine has stopped.", status=503) from exc
    return {"status": "ok"}


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics() -> Response:
    """The engine's counters, gauges and histograms."""
    return Response(generate_latest(get_prometheus_registry()), media_type=CONTENT_TYPE_LATEST)


@router.get("/version", summary="Versions")
async def versions() -> dict[str, str]:
    """The versions of this server and of vLLM."""
    return {"version": version("eft-server"), "vllm": vllm.__version__}
