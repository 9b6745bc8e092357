"""The tests of the running server, against plain vLLM that serves a packed directory with our plugins."""

import inspect
import shutil
import signal
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from openai import OpenAI

from . import test_http
from .conftest import Server, stop_server
from .vllm_server import launch, pack, start_vllm

_OF_EFT_SERVE = {"test_a_start_says_how_far_it_is_and_nothing_else"}
_OF_A_SERVER = {"server", "client", "async_client"}

globals().update(
    {
        name: test
        for name, test in vars(test_http).items()
        if name.startswith("test_")
        and name not in _OF_EFT_SERVE
        and _OF_A_SERVER & set(inspect.signature(test).parameters)
    }
)


@pytest.fixture(scope="module")
def packed(family_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed directory, moved to where it was not made."""
    made = pack(family_file, tmp_path_factory.mktemp("packed") / "tiny")
    return Path(shutil.move(made, tmp_path_factory.mktemp("moved")))


@pytest.fixture(scope="module")
def server(packed: Path) -> Iterator[Server]:
    """With all endpoints that vLLM has for developers, none of which may be left."""
    options = ("--max-model-len", "768", "--allowed-origins", '["https://a.example"]')
    server = start_vllm(packed, *options, environment={"VLLM_SERVER_DEV_MODE": "1"})
    started = psutil.Process(server.process.pid).children(recursive=True)
    yield server
    assert stop_server(server, signal.SIGTERM) == 0
    _, alive = psutil.wait_procs(started, timeout=15)
    assert alive == []


def _paths_of_vllm(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    from vllm.entrypoints.launchers.api_server.routers import register_api_routers

    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    app = FastAPI()
    args: Any = Namespace(tokens_only=False, enable_scale_out=True, enable_tokenizer_info_endpoint=True)
    app.state.args = args
    register_api_routers(args, app, ("generate",))
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    return [(method, route.path) for route in routes for method in route.methods]


def test_no_route_of_vllms_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    described = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    theirs = _paths_of_vllm(monkeypatch)
    assert {("POST", "/v1/messages"), ("POST", "/inference/v1/generate"), ("POST", "/collective_rpc")} <= {
        *theirs
    }
    for method, path in theirs:
        if path in described or path in ("/docs", "/openapi.json") or path.startswith("/v1/models"):
            continue
        answer = httpx.request(method, f"{server.url}{path}", json={} if method == "POST" else None)
        assert answer.status_code == 404, (method, path)
        assert answer.json()["error"]["code"] == "not_found"
        assert "served: /v1/chat/completions" in answer.json()["error"]["message"]


def test_the_hosts_options_act(server: Server, client: OpenAI) -> None:
    [card] = [model for model in client.models.list().data if model.id == "tiny"]
    assert card.model_extra and card.model_extra["max_model_len"] == 768
    allowed = httpx.get(f"{server.url}/health", headers={"origin": "https://a.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"


def test_an_option_that_a_family_cannot_have_ends_the_start_and_is_named(packed: Path) -> None:
    process = launch(packed, "--port", "0", "--enable-lora")
    said, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "'enable_lora' cannot be set here: name an expert's adapter" in said
