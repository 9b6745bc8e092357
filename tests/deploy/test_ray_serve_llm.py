"""The config for Ray Serve LLM is one that it reads; where that cannot be imported, it is one for Ray Serve."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

pytestmark = pytest.mark.deploy

FILE = Path(__file__).parents[2] / "deploy" / "hosts" / "ray-serve-llm.yaml"


@pytest.fixture
def arguments() -> dict[str, Any]:
    config = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text()))
    [application] = config.applications
    assert application.import_path == "ray.serve.llm:build_openai_app"
    return application.args


def test_it_loads_our_plugin_and_drains_as_long_as_a_request_may_take(arguments: dict[str, Any]) -> None:
    [model] = arguments["llm_configs"]
    assert model["runtime_env"]["env_vars"]["VLLM_PLUGINS"] == "eft"
    assert model["deployment_config"]["graceful_shutdown_timeout_s"] == 600


@pytest.mark.parametrize(("accelerator", "executor"), [("gpu", "ray"), ("cpu", "mp")])
def test_ray_serve_llm_reads_it(arguments: dict[str, Any], accelerator: str, executor: str) -> None:
    # Ray's extra `llm` names another vLLM than ours, so it cannot be locked; this is what it needs besides.
    pytest.importorskip("pyarrow", reason="ray.serve.llm needs pyarrow, pandas and jsonref")
    from ray.serve.llm import LLMServingArgs

    if accelerator == "cpu":
        arguments["llm_configs"][0]["accelerator_config"] = {"kind": "cpu"}
    [model] = LLMServingArgs.model_validate(arguments).llm_configs
    given = model.get_engine_config().get_initialization_kwargs()
    assert (given["model"], given["served_model_name"]) == ("/models/demo", ["demo"])
    assert given["distributed_executor_backend"] == executor
