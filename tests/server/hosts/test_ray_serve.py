"""The application for Ray Serve: its arguments, what follows from a family, and the way of a request behind a proxy."""

import importlib.metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema
from starlette.requests import Request
from starlette.responses import JSONResponse

from eft_server.errors import ConfigError
from eft_server.hosts.ray_serve import DEPLOYMENT, RayServeOptions, _BehindProxy, app

ROOT = Path(__file__).parents[3]


def _deployment(**arguments: Any) -> Any:
    application = app(RayServeOptions(family="demo", **arguments))
    return application._bound_deployment


def _resources(deployment: Any) -> dict[str, Any]:
    return deployment.ray_actor_options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "Field required"),
        ({"family": "demo", "replicas": "2"}, "Extra inputs are not permitted"),
        ({"family": "demo", "min_replicas": "none"}, "valid integer"),
        ({"family": "demo", "min_replicas": 0}, "greater than or equal to 1"),
        ({"family": "demo", "min_replicas": 3, "max_replicas": 2}, "max_replicas 2 is below min_replicas 3"),
        ({"family": "demo", "target_ongoing_requests": 4}, "set max_replicas above 1"),
        ({"family": "demo", "num_gpus": -1}, "greater than or equal to 0"),
    ],
)
def test_wrong_arguments_are_refused_in_words(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RayServeOptions.model_validate(arguments)


def test_wrong_families_and_overrides_are_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="neither a family file nor a bundled family"):
        app(RayServeOptions(family="nowhere.yaml"))
    with pytest.raises(ConfigError, match=r"server\.max_bodies"):
        app(RayServeOptions(family="demo", overrides=["server.max_bodies=1"]))
    with pytest.raises(ConfigError, match="processes of its node"):
        app(RayServeOptions(family="demo", overrides=["vllm.distributed_executor_backend=ray"]))


def test_paths_are_absolute_because_replicas_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = RayServeOptions(family="mine.yaml", api_key_file=Path("keys")).on_every_node()
    assert (options.family, options.api_key_file) == (str(tmp_path / "mine.yaml"), tmp_path / "keys")
    assert RayServeOptions(family="demo").on_every_node().family == "demo"


def test_bounds_follow_from_the_family() -> None:
    overrides = ["server.max_concurrent_requests=12", "server.max_waiting_requests=7"]
    deployment = _deployment(overrides=[*overrides, "server.request_timeout_s=90"])
    assert deployment.name == DEPLOYMENT
    assert (deployment.max_ongoing_requests, deployment.max_queued_requests) == (12, 7)
    config = deployment._deployment_config
    assert config.graceful_shutdown_timeout_s == 90
    assert (config.backpressure_config.status_code, config.backpressure_config.retry_after_s) == (429, 1)
    assert (config.num_replicas, config.autoscaling_config) == (1, None)


def test_the_number_of_replicas_follows_ongoing_requests() -> None:
    arguments = RayServeOptions.model_validate({"family": "demo", "min_replicas": "2", "max_replicas": "5"})
    scaling = app(arguments)._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 128)
    assert _deployment(min_replicas=3).num_replicas == 3


def test_a_replica_gets_a_gpu_for_each_rank_and_none_with_the_cpu_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _resources(_deployment()) == {"num_cpus": 1, "num_gpus": 0}
    assert _resources(_deployment(num_gpus=0.5, num_cpus=4)) == {"num_cpus": 4, "num_gpus": 0.5}

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("eft_server.hosts.ray_serve.distribution", missing)
    assert _resources(_deployment())["num_gpus"] == 1
    assert _resources(_deployment(overrides=["vllm.tensor_parallel_size=4"]))["num_gpus"] == 4


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    request = Request(scope, receive)
    headers = {"x-request-id": request.headers.get("x-request-id", "ours")}
    facts = {"path": request.url.path, "raw": scope["raw_path"].decode(), "root": scope["root_path"]}
    await JSONResponse(facts, headers=headers)(scope, receive, send)


async def _asked(path: str, root: str, headers: dict[str, str]) -> httpx.Response:
    transport = httpx.ASGITransport(_BehindProxy(_echo), root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize("root", ["", "/demo"])
async def test_limits_see_paths_without_the_applications_prefix(root: str) -> None:
    answer = await _asked(f"{root}/v1/models", root, {})
    assert answer.json() == {"path": "/v1/models", "raw": "/v1/models", "root": ""}
    assert (await _asked(root or "/", root, {})).json()["path"] == "/"


async def test_an_id_that_the_proxy_adds_is_left_to_it() -> None:
    assert "x-request-id" not in (await _asked("/v1/models", "", {"x-request-id": "theirs"})).headers
    assert (await _asked("/v1/models", "", {})).headers["x-request-id"] == "ours"


def test_the_config_is_one_that_ray_serve_reads() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text()))
    [application] = config.applications
    assert application.import_path == "eft_server.hosts.ray_serve:app"
    assert [deployment.name for deployment in application.deployments] == [DEPLOYMENT]
    assert app(RayServeOptions.model_validate(application.args)) is not None
