"""The test family, and HTTP clients of an application that runs in this process."""

from typing import Any

import httpx
from fastapi import FastAPI

from eft_server.family.file import ServerConfig

FAMILY: dict[str, Any] = {
    "name": "demo",
    "base": {"model": "large"},
    "references": {"small": {"model": "small"}},
    "experts": {"helpful": {"model": "helpful"}, "harmless": {"model": "harmless"}},
    "aliases": {"demo-helpful": {"weights": {"helpful": 1.0}, "description": "Only helpful."}},
    "server": {"max_n": 4, "max_prompts": 3, "max_logprobs": 5, "max_body_bytes": 20_000},
}


def family(**server: Any) -> ServerConfig:
    """The test family, with some server options changed."""
    return ServerConfig.model_validate(FAMILY | {"server": FAMILY["server"] | server})


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """A client that sees unexpected failures as the HTTP responses that they cause."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server")
