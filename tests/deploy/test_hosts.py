"""Hosts that are not ours: what their files start is read by vLLM's parser, or ours, and allowed for a family.

Each host's pod is put together as its chart or controller does: production-stack's and llm-d's from their values,
KServe's from the manifest and what its own template adds.
"""

import re
import tomllib
from collections.abc import Callable

import pytest
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from eft_server.api.routes.operations import router
from eft_server.family.file import ServerConfig
from eft_server.family.load import load_config
from eft_server.family.vllm_options import PASSED, problem_with

from .charts import (
    ROOT,
    Document,
    command_options,
    documents,
    selectors,
    serve_options,
    validate,
    values_of,
)
from .test_helm import vllms_gauges

HOSTS = ROOT / "deploy" / "hosts"
LISTENING = {"host", "port", "model_tag", "served_model_name"}
"""What `vllm serve` is told about itself, and what every host may set."""


def production_stack() -> Document:
    values = values_of(HOSTS / "production-stack.yaml")["servingEngineSpec"]
    [model] = values["modelSpec"]
    container = {
        "name": "vllm",
        "image": f"{model['repository']}:{model['tag']}",
        "command": [
            *("vllm", "serve", model["modelURL"], "--host", "0.0.0.0", "--port", "8000"),
            "--enable-prefix-caching",
            *model["vllmConfig"]["extraArgs"],
        ],
        "env": [{"name": "HF_HOME", "value": "/data"}, *model["env"]],
        "ports": [{"containerPort": 8000}],
        "securityContext": values["containerSecurityContext"],
        "volumeMounts": [{"name": "storage", "mountPath": "/data"}, *model["extraVolumeMounts"]],
        **{name: values[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")},
    }
    storage = {"name": "storage", "persistentVolumeClaim": {"claimName": model["pvcExistingClaimName"]}}
    return {
        "containers": [container],
        "volumes": [storage, *model["extraVolumes"]],
        "securityContext": values["securityContext"],
    }


def llm_d() -> Document:
    values = values_of(HOSTS / "llm-d.yaml")
    decode, artifacts = values["decode"], values["modelArtifacts"]
    claim, _, path = artifacts["uri"].removeprefix("pvc://").partition("/")
    [given] = decode["containers"]
    assert given["modelCommand"] == "vllmServe"
    container = {
        **{name: given[name] for name in ("name", "image", "env", "ports", "resources")},
        "command": ["vllm", "serve"],
        "args": [
            *(f"/model-cache/{path}", "--port", str(values["routing"]["servicePort"])),
            *("--served-model-name", artifacts["name"], *given["args"]),
        ],
        "volumeMounts": [*given["volumeMounts"], {"name": "models", "mountPath": "/model-cache"}],
        **given["extraConfig"],
    }
    storage = {"name": "models", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    return {
        "containers": [container],
        "volumes": [*decode["volumes"], storage],
        "terminationGracePeriodSeconds": decode["terminationGracePeriodSeconds"],
        "enableServiceLinks": decode["enableServiceLinks"],
        **decode["extraConfig"],
    }


def llm_inference_service() -> Document:
    manifest = values_of(HOSTS / "kserve-llminferenceservice.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1alpha2", "LLMInferenceService")
    pod = manifest["spec"]["template"]
    [container] = pod["containers"]
    # KServe's template has this container, into which ours is merged, with these volumes and the model.
    assert container["name"] == "main"
    own = {
        "home": "/home",
        "tmp-dir": "/tmp",
        "dshm": "/dev/shm",
        "model-cache": "/models",
        "model": "/mnt/models",
    }
    merged = {
        "ports": [{"containerPort": 8000}],
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in own.items()],
    }
    return pod | {
        "containers": [merged | container],
        "volumes": [{"name": name, "emptyDir": {}} for name in own],
    }


def inference_service() -> Document:
    manifest = values_of(HOSTS / "kserve-inferenceservice.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = manifest["spec"]["predictor"]
    return {
        name: value
        for name, value in predictor.items()
        if name not in ("minReplicas", "maxReplicas", "timeout")
    }


VLLM: list[Callable[[], Document]] = [production_stack, llm_d, llm_inference_service]
ALL = [*VLLM, inference_service]


@pytest.fixture(params=VLLM, ids=lambda host: host.__name__)
def pod(request) -> Document:
    return request.param()


def variables(container: Document) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


@pytest.mark.parametrize("host", ALL, ids=lambda host: host.__name__)
def test_kubernetes_knows_every_key_of_its_pod(host):
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": host()}, "1.37")


@pytest.mark.parametrize("host", ALL, ids=lambda host: host.__name__)
def test_its_container_is_our_image_read_only_with_room_to_write(host):
    pod = host()
    [container] = pod["containers"]
    repository, _, target = container["image"].rpartition(":")
    assert repository.endswith("/eft-server")
    assert re.search(rf"^FROM \S+ AS {target}$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    context = pod.get("securityContext", {}) | container["securityContext"]
    assert context["runAsNonRoot"]
    assert context["readOnlyRootFilesystem"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    home = variables(container).get("HOME", "/home/eft")
    assert {"/tmp", "/dev/shm", home} <= mounts


@pytest.mark.parametrize("host", ALL, ids=lambda host: host.__name__)
def test_its_probes_ask_for_routes_on_the_port_that_is_served(host):
    [container] = host()["containers"]
    [port] = container["ports"]
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container[name]["httpGet"]
        assert probe["path"] in {route.path for route in router.routes}
        assert probe["port"] in (port["containerPort"], port.get("name"))
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


def test_vllm_reads_its_command_and_a_family_allows_each_option(pod):
    [container] = pod["containers"]
    words = [*container["command"], *container.get("args", ())]
    assert words[:2] == ["vllm", "serve"]
    assert container["image"].endswith(":cuda"), "vLLM's CPU build has no working command of that name"
    parser = make_arg_parser(FlexibleArgumentParser())
    given, usual = parser.parse_args(words[2:]), parser.parse_args([])
    changed = {name for name, value in vars(given).items() if value != getattr(usual, name)} - LISTENING
    assert {name: problem_with(name, getattr(given, name)) for name in changed} == dict.fromkeys(changed)
    assert changed <= PASSED
    assert given.port == container["ports"][0]["containerPort"]
    assert any(given.model_tag.startswith(mount["mountPath"]) for mount in container["volumeMounts"])
    assert given.shutdown_timeout < pod.get("terminationGracePeriodSeconds", 30)


def test_a_name_that_it_gives_the_model_may_be_a_familys(pod):
    [container] = pod["containers"]
    words = [*container["command"], *container.get("args", ())]
    names = make_arg_parser(FlexibleArgumentParser()).parse_args(words[2:]).served_model_name or ["steered"]
    document = load_config("demo").model_dump(exclude_unset=True)
    for name in [names] if isinstance(names, str) else names:
        assert ServerConfig.model_validate(document | {"name": name}).name == name


def test_it_names_plugins_that_the_package_has(pod):
    [container] = pod["containers"]
    plugins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for name in variables(container)["VLLM_PLUGINS"].split(","):
        assert name in plugins["vllm.general_plugins"]
        assert name in plugins["vllm.endpoint_plugins"]


def job() -> Document:
    [claim, job] = documents((HOSTS / "pack.yaml").read_text())
    for document in (claim, job):
        validate(document, "1.37")
    pod = job["spec"]["template"]["spec"]
    assert claim["metadata"]["name"] in str(pod["volumes"])
    return pod


def packed() -> ServerConfig:
    """The family that the Job packs."""
    [container] = job()["containers"]
    options = command_options("pack", container["args"])
    return load_config(options["family"], options["overrides"])


def test_the_job_packs_the_family_that_the_hosts_serve_where_they_look_for_it():
    [container] = job()["containers"]
    folder = command_options("pack", container["args"])["directory"]
    assert str(folder.parent) in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert folder.name == packed().name == "steered"
    [model] = values_of(HOSTS / "production-stack.yaml")["servingEngineSpec"]["modelSpec"]
    assert (model["pvcExistingClaimName"], model["modelURL"]) == ("families", "/data/steered")
    assert values_of(HOSTS / "llm-d.yaml")["modelArtifacts"]["uri"] == "pvc://families/steered"
    service = values_of(HOSTS / "kserve-llminferenceservice.yaml")["spec"]["model"]
    assert (service["uri"], service["name"]) == ("pvc://families/steered", "steered")


def test_kserve_may_start_our_own_command():
    [container] = inference_service()["containers"]
    options = serve_options(container["args"])
    assert options["host"] == "0.0.0.0"
    assert [options["port"]] == [port["containerPort"] for port in container["ports"]]
    assert options["family"] == "/mnt/models/family.yaml"
    drain_s = load_config("demo", options["overrides"]).server.drain_s
    assert drain_s + 15 <= inference_service()["terminationGracePeriodSeconds"]


def test_production_stack_scales_by_labels_that_vllm_has():
    [model] = values_of(HOSTS / "production-stack.yaml")["servingEngineSpec"]["modelSpec"]
    [trigger] = model["keda"]["triggers"]
    metric, labels = selectors(trigger["metadata"]["query"])
    assert labels == {"model_name": packed().name}
    assert labels.keys() <= set(vllms_gauges()[metric])
