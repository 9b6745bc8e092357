"""The endpoint plugin inside vLLM's application, as vLLM builds it, over scripted tokens."""

import asyncio
import logging
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from uvicorn.protocols.http import auto
from vllm import AsyncEngineArgs
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.plugins.endpoint_plugins.interface import init_endpoint_plugins_state
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from eft_server.api.edge.admission import PROBES
from eft_server.errors import ConfigError
from eft_server.hosts.travelling import FAMILY
from eft_server.hosts.vllm_serve import EftEndpoints

from ..api.fake_engine import FakeEngine
from ..api.served import client_of

CHAT = {
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 4,
    "eft": {"weights": {"helpful": 1}},
}


@pytest.fixture(scope="module")
def engine(packed: Path) -> FakeEngine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_PLUGINS", "eft")
        args = AsyncEngineArgs(model=str(packed))
        config = args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    return FakeEngine(packed / "members" / "base", config)


@pytest.fixture(autouse=True)
def _left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    ours = logging.getLogger("eft_server")
    before = ours.handlers, ours.propagate, ours.level
    yield
    ours.handlers, ours.propagate, ours.level = before


def _arguments(*arguments: str) -> Namespace:
    args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args(list(arguments))
    return args


@asynccontextmanager
async def _served(engine: FakeEngine | None, *arguments: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of vLLM's application, built in vLLM's order."""
    args = _arguments(*arguments)
    app = build_app(args, ("generate",), engine.model_config if engine else None)
    client: Any = engine
    await init_endpoint_plugins_state(client, app.state, args)
    async with client_of(app) as asking:
        yield asking


async def test_every_path_leads_into_our_application(engine: FakeEngine, packed: Path) -> None:
    engine.reset()
    async with _served(engine, "--model", str(packed)) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
        assert answer.json()["eft"]["weights"] == {"helpful": 1.0, "harmless": 0.0, "broken": 0.0}
        assert engine.asked[-1].extra_args
        for path in ("/v1/messages", "/invocations", "/v1/embeddings", "/inference/v1/generate"):
            refused = await client.post(path, json=CHAT)
            assert refused.status_code == 404
            assert refused.json()["error"]["message"].startswith(f"Not Found: POST {path}; served: /v1/chat/")
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/docs")).status_code == 200


@pytest.mark.parametrize("given", ["option", "environment"])
async def test_keys_of_the_host_and_of_the_family_all_open_every_path(
    engine: FakeEngine, packed: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given == "environment":
        monkeypatch.setenv("VLLM_API_KEY", "hosts")
    options = ("--api-key", "hosts", "second") if given == "option" else ()
    async with _served(engine, "--model", str(packed), *options) as client:
        assert (await client.get("/health")).status_code == 200
        for path in ("/metrics", "/v1/models", "/invocations"):
            refused = await client.get(path)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        opened = await client.get("/v1/models", headers={"authorization": "Bearer hosts"})
        assert opened.status_code == 200


async def test_documentation_is_hidden_where_the_host_says_so(engine: FakeEngine, packed: Path) -> None:
    async with _served(engine, "--model", str(packed), "--disable-fastapi-docs") as client:
        for path in ("/docs", "/openapi.json", "/docs/assets/swagger-ui.css"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/v1/models")).status_code == 200


async def test_bodies_are_bounded_as_under_eft_serve(engine: FakeEngine, packed: Path) -> None:
    async with _served(engine, "--model", str(packed)) as client:
        large = await client.post("/v1/completions", json={"prompt": "a" * 70_000})
        assert large.status_code == 413
        assert large.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--chat-template", "{{ 1 }}"), "--chat-template .* cannot be set for a family"),
        (("--enable-auto-tool-choice", "--tool-call-parser", "hermes"), "use server.tool_parser"),
        (("--lora-modules", "a=b"), "name an expert's adapter"),
        (("--enable-scale-out",), "without weights"),
        (("--sse-keep-alive-interval", "5"), "streams hold nothing but events"),
    ],
)
async def test_options_that_a_family_cannot_have_are_refused_by_name(
    engine: FakeEngine, packed: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        async with _served(engine, "--model", str(packed), *options):
            pass


async def test_an_engine_for_another_family_is_refused(engine: FakeEngine, packed: Path) -> None:
    manifest = engine.model_config.hf_config.eft
    engine.model_config.hf_config.eft = {**manifest, "rows": [1, 2, 3, 4, 5]}
    try:
        with pytest.raises(ConfigError, match="runs another family than its files describe"):
            async with _served(engine, "--model", str(packed)):
                pass
    finally:
        engine.model_config.hf_config.eft = manifest


async def test_a_server_that_only_renders_is_refused(packed: Path) -> None:
    with pytest.raises(ConfigError, match="vllm launch render"):
        async with _served(None, "--model", str(packed)):
            pass


async def test_routes_of_another_plugin_are_refused_by_its_name(engine: FakeEngine, packed: Path) -> None:
    app = FastAPI()
    app.state.args = _arguments("--model", str(packed))
    ours, theirs = EftEndpoints(), Namespace(name="theirs")
    ours.attach_router(app)
    app.state.endpoint_plugins = [ours, theirs]
    client: Any = engine
    with pytest.raises(ConfigError, match="the routes of theirs cannot be served beside a family"):
        await ours.init_state(client, app.state, app.state.args)


async def test_an_ordinary_model_keeps_vllms_routes(family_file: Path) -> None:
    app = FastAPI()
    app.state.args = _arguments("--model", str(family_file.parent / "base"))
    before = list(app.routes)
    plugin = EftEndpoints()
    plugin.attach_router(app)
    await plugin.init_state(None, app.state, app.state.args)
    assert app.routes == before


async def test_new_requests_are_refused_from_the_moment_in_which_vllm_shuts_its_engine_down(
    engine: FakeEngine, packed: Path
) -> None:
    engine.reset()
    async with _served(engine, "--model", str(packed)) as client:
        assert (await client.get("/readyz")).status_code == 200
        engine.shutdown(timeout=0)
        for answer in (await client.get("/readyz"), await client.post("/v1/chat/completions", json=CHAT)):
            assert answer.status_code == 503
            assert answer.json()["error"]["message"] == "The server is stopping."
        assert (await client.get("/livez")).status_code == 503
    del engine.shutdown


async def test_probes_and_limits_are_the_same_below_a_root_path(
    engine: FakeEngine, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.reset()
    engine.pause_s = 0.01
    family = {**engine.model_config.hf_config.eft_family, "server": {"max_concurrent_requests": 1}}
    monkeypatch.setattr(engine.model_config.hf_config, FAMILY, family)
    options = ("--root-path", "/steer", "--api-key", "hosts")
    async with _served(engine, "--model", str(packed), *options) as client:
        assert [(await client.get(f"/steer{path}")).status_code for path in sorted(PROBES)] == [200, 200, 200]
        for path in (
            "/steer/v1/models",
            "/steer/metrics",
            "/steerlivez",
            "/steer/steer/livez",
            "/steer//livez",
        ):
            assert (await client.get(path)).status_code == 401
        client.headers["authorization"] = "Bearer hosts"
        paths = ("/v1/chat/completions", "/steer/v1/chat/completions") * 3
        answers = await asyncio.gather(*(client.post(path, json=CHAT) for path in paths))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert engine.most_running == 1
