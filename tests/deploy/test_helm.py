"""The chart: what it renders is what Kubernetes, our command line, our routes and vLLM's metrics understand."""

import ast
import base64
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount
from starlette.testclient import TestClient

from eft_server import __version__
from eft_server.api.edge.admission import PROBES
from eft_server.api.edge.auth import ApiKeyAuth
from eft_server.api.edge.keys import read_api_keys
from eft_server.api.routes.operations import router
from eft_server.family.load import bundled_families, load_config

from .charts import (
    CHART,
    NAMESPACE,
    RELEASE,
    Document,
    keys_in,
    keys_of,
    notes,
    only,
    pod_of,
    rendered,
    selectors,
    serve_options,
    validate,
    values_of,
)

EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
EVERYTHING = Path(__file__).parent / "values" / "everything.yaml"
FILES = [CHART / "values.yaml", *EXAMPLES, EVERYTHING]
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
NEWEST = "1.37"
OLDEST = "1.30"


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def values(request) -> Document:
    return values_of(request.param)


def with_model(**keys: Any) -> Document:
    """Values with one entry, which is complete without the keys."""
    entry = {"name": "one", "family": "demo"} | keys
    return {"servingEngineSpec": {"modelSpec": [{key: v for key, v in entry.items() if v is not None}]}}


def with_engine(**keys: Any) -> Document:
    return {"servingEngineSpec": with_model()["servingEngineSpec"] | keys}


def test_it_is_free_of_lint(values):
    report = helm_python.lint(CHART, values, strict=True)
    found = [message["error"] for message in report["messages"] if message["severity"] > 1]
    assert not found
    assert not report["errors"]


def test_kubernetes_knows_every_key_of_what_it_renders(values):
    for document in rendered(values):
        validate(document, NEWEST)
        assert document["metadata"].get("namespace", NAMESPACE) == NAMESPACE


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "image"], ids=lambda path: path.stem)
def test_so_does_the_oldest_kubernetes_that_it_asks_for(path):
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"] == f">={OLDEST}.0-0"
    for document in rendered(values_of(path)):
        validate(document, OLDEST)


def test_an_image_volume_is_for_newer_ones():
    with pytest.raises(Exception, match="image"):
        validate(only(rendered(values_of(CHART / "examples" / "image.yaml")), "Deployment"), OLDEST)


def test_no_two_objects_have_one_name(values):
    names = [(document["kind"], document["metadata"]["name"]) for document in rendered(values)]
    assert len(names) == len(set(names))


def test_selectors_find_their_pods_and_no_others(values):
    found = rendered(values)
    pods = {
        d["metadata"]["name"]: d["spec"]["template"]["metadata"]["labels"]
        for d in found
        if d["kind"] == "Deployment"
    }

    def chosen(selector: dict[str, str]) -> set[str]:
        return {name for name, labels in pods.items() if selector.items() <= labels.items()}

    for document in found:
        name, spec = document["metadata"]["name"], document.get("spec", {})
        match document["kind"]:
            case "Service":
                assert chosen(spec["selector"]) == {name}
            case "Deployment" | "PodDisruptionBudget":
                assert chosen(spec["selector"]["matchLabels"]) == {name}
            case "NetworkPolicy":
                assert chosen(spec["podSelector"]["matchLabels"]) == {name}
            case "ServiceMonitor":
                services = [d["metadata"]["labels"] for d in found if d["kind"] == "Service"]
                assert all(spec["selector"]["matchLabels"].items() <= labels.items() for labels in services)
                # The alert EftDown looks for the job's name.
                assert all("eft" in labels[spec["jobLabel"]] for labels in services)
            case "HorizontalPodAutoscaler" | "ScaledObject":
                assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
                assert "replicas" not in only(found, "Deployment", name)["spec"]


def test_the_chart_is_of_the_servers_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


# The container.


def test_the_arguments_are_those_of_our_command_line(values, tmp_path):
    found = rendered(values)
    for deployment in (document for document in found if document["kind"] == "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        [container] = pod["containers"]
        options = serve_options(container["args"])
        assert options["host"] == "0.0.0.0"
        assert [options["port"]] == [port["containerPort"] for port in container["ports"]]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        if options["api_key_file"]:
            assert str(options["api_key_file"].parent) in mounted
        family = options["family"]
        if family == "/etc/eft/family.yaml":
            text = only(found, "ConfigMap", f"{deployment['metadata']['name']}-family")["data"]["family.yaml"]
            (tmp_path / "family.yaml").write_text(text)
            family = str(tmp_path / "family.yaml")
        elif family.startswith("/"):
            assert str(Path(family).parent) in mounted
            continue
        config = load_config(family, options["overrides"] or (), revision=options["revision"])
        assert config.server.drain_s + 15 <= pod["terminationGracePeriodSeconds"]


def test_what_vllm_gets_are_its_own_options():
    [container] = pod_of(rendered(values_of(EVERYTHING)), "own")["containers"]
    options = serve_options(container["args"])
    assert options["overrides"] == [
        "server.drain_s=30",
        "defaults.scale=0.5",
        "limits.weight={min: -1, max: 2}",
    ]
    assert " ".join(options["vllm_arguments"]) == (
        "--data-parallel-size 1 --max-model-len 1048576 --max-num-seqs 512 --tensor-parallel-size 2 "
        "--dtype bfloat16 --gpu-memory-utilization 0.85 --enable-chunked-prefill --no-enable-prefix-caching "
        "--kv-cache-dtype fp8"
    )


def test_the_family_file_arrives_as_it_was_written():
    text = values_of(CHART / "examples" / "gpu.yaml")["servingEngineSpec"]["modelSpec"][0]["familyFile"]
    data = only(rendered(values_of(CHART / "examples" / "gpu.yaml")), "ConfigMap")["data"]["family.yaml"]
    assert data == text
    assert "4194304" in data


def test_it_may_supervise_its_engine():
    found = rendered(values_of(EVERYTHING))
    assert serve_options(pod_of(found, "scaled")["containers"][0]["args"])["supervise"]
    assert not serve_options(pod_of(found, "own")["containers"][0]["args"])["supervise"]


def test_a_supervised_engine_may_take_as_long_as_a_start():
    found = rendered(values_of(EVERYTHING))
    [own], [supervised] = (pod_of(found, name)["containers"] for name in ("own", "scaled"))
    assert own["livenessProbe"]["failureThreshold"] == 3
    assert (
        supervised["livenessProbe"]["failureThreshold"]
        == supervised["startupProbe"]["failureThreshold"]
        == 300
    )


def test_the_pod_may_do_nothing_that_it_need_not(values):
    unset = values["servingEngineSpec"].get("containerSecurityContext", {})
    for document in rendered(values):
        if document["kind"] != "Deployment":
            continue
        pod = document["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == unset | {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        paths = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
        assert {"/tmp", "/home/eft", "/cache", "/dev/shm"} <= paths.keys()
        assert paths["/dev/shm"]["emptyDir"]["medium"] == "Memory"


def test_what_is_written_to_are_the_images_volumes():
    image = (CHART.parents[1] / "Dockerfile").read_text()
    [volumes] = [
        json.loads(line.split(None, 1)[1]) for line in image.splitlines() if line.startswith("VOLUME")
    ]
    mounts = pod_of(rendered(), "demo")["containers"][0]["volumeMounts"]
    assert {mount["mountPath"] for mount in mounts} == {*volumes, "/dev/shm"}
    assert "HF_HOME=/cache" in image


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_probes_ask_for_what_the_server_answers_without_a_key(probe):
    path = pod_of(rendered(), "demo")["containers"][0][probe]["httpGet"]["path"]
    assert path in {route.path for route in router.routes}
    application = Starlette(routes=[Mount("/", Response("ours"))])
    with TestClient(ApiKeyAuth(application, ["a-key"], PROBES)) as client:
        assert client.get(path).status_code == 200
        assert client.get("/metrics").status_code == 401


def test_a_start_may_take_half_an_hour_and_does_not_count_as_failed():
    deployment = only(rendered(), "Deployment")
    probe = deployment["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1800
    assert probe["periodSeconds"] * probe["failureThreshold"] < deployment["spec"]["progressDeadlineSeconds"]


def test_the_pause_before_the_end_counts_beside_the_drain():
    pod = pod_of(rendered(with_engine(drainSeconds=120, preStopSeconds=10)), "one")
    assert pod["terminationGracePeriodSeconds"] == 10 + 120 + 15
    assert pod["containers"][0]["lifecycle"]["preStop"] == {"sleep": {"seconds": 10}}
    assert "lifecycle" not in pod_of(rendered(with_engine(preStopSeconds=0)), "one")["containers"][0]


def test_an_entry_may_have_its_own_image():
    def images(values: Document) -> set[str]:
        found = rendered(values)
        pods = [only(found, "Deployment")["spec"]["template"], only(found, "Pod")]
        return {container["image"] for pod in pods for container in pod["spec"]["containers"]}

    assert images({}) == {"eft-server:cpu"}
    given = helm_python.parse_set_string("servingEngineSpec.repository=registry.example/eft-server")
    assert images(given) == {"registry.example/eft-server:cpu"}
    assert images(with_model(repository="other", tag="cuda")) == {"other:cuda"}


def test_a_gpu_is_asked_for_and_limited_alike():
    resources = pod_of(rendered(with_model(requestGPU=2, requestCPU=4, limitMemory="8Gi")), "one")
    assert resources["containers"][0]["resources"] == {
        "requests": {"cpu": "4", "nvidia.com/gpu": "2"},
        "limits": {"memory": "8Gi", "nvidia.com/gpu": "2"},
    }


def test_a_changed_family_or_key_starts_new_pods():
    def annotations(**keys: Any) -> Document:
        found = rendered(with_engine(**keys))
        return only(found, "Deployment")["spec"]["template"]["metadata"]["annotations"]

    assert annotations(vllmApiKey="a") != annotations(vllmApiKey="b")
    families = [with_model(family=None, familyFile=f"name: {name}\n") for name in ("a", "b")]
    first, second = (only(rendered(each), "Deployment")["spec"]["template"] for each in families)
    assert first["metadata"]["annotations"] != second["metadata"]["annotations"]


# Where checkpoints come from.


def test_checkpoints_come_from_an_image():
    pod = pod_of(rendered(values_of(CHART / "examples" / "image.yaml")), "packed")
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "models"]
    assert volume["image"] == {"reference": "registry.example/steered-models:1", "pullPolicy": "IfNotPresent"}
    [mount] = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "models"]
    assert mount == {"name": "models", "mountPath": "/models", "readOnly": True}


def test_checkpoints_come_from_a_claim():
    pod = pod_of(rendered(values_of(EVERYTHING)), "own")
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "models"]
    assert volume["persistentVolumeClaim"] == {"claimName": "checkpoints", "readOnly": True}
    [mount] = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "models"]
    assert mount["subPath"] == "families/own"


def test_what_comes_from_the_hub_is_kept_in_a_claim_and_asked_for_with_a_token():
    found = rendered(values_of(CHART / "examples" / "gpu.yaml"))
    pod = pod_of(found, "steered")
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "cache"]
    claim = only(found, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
    assert claim["spec"]["resources"]["requests"]["storage"] == "50Gi"
    [variable] = pod["containers"][0]["env"]
    assert variable == {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}},
    }


def test_only_what_asks_the_hub_may_reach_it():
    policies = {
        offline: only(rendered(with_policy(offline=offline)), "NetworkPolicy")["spec"]["egress"]
        for offline in (True, False)
    }
    https = {"ports": [{"protocol": "TCP", "port": 443}]}
    assert https in policies[False]
    assert policies[True] == [rule for rule in policies[False] if rule != https]


def with_policy(**keys: Any) -> Document:
    return {
        "servingEngineSpec": with_model(**keys)["servingEngineSpec"] | {"networkPolicy": {"enabled": True}}
    }


# Keys.


def test_the_chart_makes_a_secret_that_the_server_reads(tmp_path):
    found = rendered(values_of(EVERYTHING))
    secret = only(found, "Secret", f"{RELEASE}-api-keys")["data"]
    (tmp_path / "keys").write_bytes(base64.b64decode(secret["api-keys"]))
    keys = read_api_keys(tmp_path / "keys")
    assert keys == ("first-key", "second-key")
    assert base64.b64decode(secret["metrics"]).decode() == keys[0]
    [volume] = [volume for volume in pod_of(found, "own")["volumes"] if volume["name"] == "keys"]
    assert volume["secret"] == {
        "secretName": f"{RELEASE}-api-keys",
        "items": [{"key": "api-keys", "path": "api-keys"}],
    }


def test_prometheus_sends_one_key_from_a_secret_of_the_operators():
    found = rendered(values_of(CHART / "examples" / "gpu.yaml"))
    [endpoint] = only(found, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["path"] in {route.path for route in router.routes}
    assert endpoint["port"] in {port["name"] for port in only(found, "Service")["spec"]["ports"]}
    assert endpoint["authorization"] == {
        "type": "Bearer",
        "credentials": {"name": "eft-keys", "key": "metrics"},
    }
    assert not [document for document in found if document["kind"] == "Secret"]


def test_without_keys_nothing_is_mounted_and_the_notes_say_so():
    found = rendered(with_engine(serviceMonitor={"enabled": True}))
    assert "authorization" not in only(found, "ServiceMonitor")["spec"]["endpoints"][0]
    assert serve_options(pod_of(found, "one")["containers"][0]["args"])["api_key_file"] is None
    assert "No API keys" in notes(with_model())
    assert "No API keys" not in notes(with_engine(vllmApiKey="a"))


# Scaling.


def vllms_gauges() -> dict[str, list[str]]:
    """Gauges of an engine with their labels, as vLLM's source names them."""
    [place] = find_spec("vllm").submodule_search_locations
    tree = ast.parse((Path(place) / "v1" / "metrics" / "loggers.py").read_text())
    [logger] = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "PrometheusStatLogger"
    ]
    [labels] = [
        ast.literal_eval(node.value)
        for node in ast.walk(logger)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "labelnames"
    ]
    calls = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for node in ast.walk(logger)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._gauge_cls"
    ]
    return {ast.literal_eval(call["name"]): labels for call in calls if call["labelnames"] == "labelnames"}


@pytest.mark.parametrize("path", [CHART / "examples" / "gpu.yaml", EVERYTHING], ids=lambda path: path.stem)
def test_keda_asks_for_metrics_and_labels_that_vllm_has(path):
    gauges = vllms_gauges()
    for document in rendered(values_of(path)):
        if document["kind"] != "ScaledObject" or document["spec"]["triggers"][0]["type"] != "prometheus":
            continue
        triggers = document["spec"]["triggers"]
        [entry] = [
            entry
            for entry in values_of(path)["servingEngineSpec"]["modelSpec"]
            if document["metadata"]["name"] == f"{RELEASE}-{entry['name']}"
        ]
        served = entry.get("family") or yaml.safe_load(entry["familyFile"])["name"]
        asked = [selectors(trigger["metadata"]["query"]) for trigger in triggers]
        assert [metric for metric, _ in asked] == ["vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
        for metric, labels in asked:
            # The last two are Prometheus's, from the ServiceMonitor's target.
            assert labels.keys() - {"namespace", "service"} <= set(gauges[metric])
            assert labels == {
                "model_name": served,
                "namespace": NAMESPACE,
                "service": document["metadata"]["name"],
            }
        assert [trigger["metricType"] for trigger in triggers] == ["AverageValue", "Value"]
        assert all(float(trigger["metadata"]["threshold"]) > 0 for trigger in triggers)


def test_without_a_service_monitor_nothing_says_which_service_it_is():
    scaled = only(rendered(with_model(keda={"enabled": True})), "ScaledObject")
    _, labels = selectors(scaled["spec"]["triggers"][0]["metadata"]["query"])
    assert labels == {"model_name": "demo", "namespace": NAMESPACE}


def test_the_label_of_a_bundled_family_is_its_name():
    assert {name: load_config(name).name for name in bundled_families()} == {n: n for n in bundled_families()}


def test_the_adapter_has_the_metrics_that_the_autoscaler_asks_for():
    autoscaler = only(rendered(values_of(CHART / "examples" / "replicas.yaml")), "HorizontalPodAutoscaler")
    asked = {metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"]}
    rules = values_of(CHART / "prometheus-adapter.yaml")["rules"]["custom"]
    assert {rule["name"]["as"] for rule in rules} == asked
    for rule in rules:
        metric = rule["seriesQuery"].split('"')[1]
        assert metric in vllms_gauges()
        assert metric.replace(":", "_") == rule["name"]["as"]


# Custom resources, whose definitions are not among Kubernetes' schemas: compared as a whole.


def test_a_conversation_stays_on_one_replica_by_a_header():
    found = rendered(values_of(CHART / "examples" / "replicas.yaml"))
    rule = only(found, "DestinationRule")
    assert rule["apiVersion"] == "networking.istio.io/v1"
    assert rule["spec"] == {
        "host": only(found, "Service")["metadata"]["name"],
        "trafficPolicy": {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-session-id"}}},
    }


def test_a_route_leads_to_the_service():
    found = rendered(values_of(CHART / "examples" / "replicas.yaml"))
    route = only(found, "HTTPRoute")
    [port] = only(found, "Service")["spec"]["ports"]
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"] == {
        "parentRefs": [{"name": "gateway", "namespace": "istio-system"}],
        "hostnames": ["llm.example.org"],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                "timeouts": {"request": "0s"},
                "backendRefs": [{"name": f"{RELEASE}-demo", "port": port["port"]}],
            }
        ],
    }


def test_a_route_may_lead_to_a_pool_of_the_pods():
    found = rendered(values_of(EVERYTHING))
    pool, deployment = only(found, "InferencePool"), only(found, "Deployment", f"{RELEASE}-queued")
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert pool["spec"] == {
        "selector": deployment["spec"]["selector"],
        "targetPorts": [{"number": container["ports"][0]["containerPort"]}],
        "endpointPickerRef": {"name": "epp", "port": {"number": 9003}, "failureMode": "FailClose"},
    }
    [rule] = only(found, "HTTPRoute")["spec"]["rules"]
    group = pool["apiVersion"].partition("/")[0]
    assert rule["backendRefs"] == [
        {"group": group, "kind": pool["kind"], "name": pool["metadata"]["name"]},
    ]


def test_a_scaled_object_has_keys_that_keda_has():
    scaled = only(rendered(values_of(EVERYTHING)), "ScaledObject", f"{RELEASE}-scaled")
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    assert {key: value for key, value in scaled["spec"].items() if key != "triggers"} == {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{RELEASE}-scaled"},
        "minReplicaCount": 2,
        "maxReplicaCount": 16,
        "pollingInterval": 30,
        "cooldownPeriod": 600,
        "initialCooldownPeriod": 120,
        "fallback": {"failureThreshold": 3, "replicas": 4},
        "advanced": {"restoreToOriginalReplicaCount": True},
    }
    for trigger in scaled["spec"]["triggers"]:
        assert trigger.keys() == {"type", "metricType", "metadata", "authenticationRef"}
        assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold"}


def test_a_service_monitor_has_keys_that_the_operator_has():
    monitor = only(rendered(values_of(EVERYTHING)), "ServiceMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"].keys() == {"jobLabel", "selector", "namespaceSelector", "endpoints"}
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": [NAMESPACE]}
    assert monitor["spec"]["endpoints"][0].keys() == {
        *("port", "path", "interval", "scrapeTimeout", "honorLabels"),
        *("authorization", "metricRelabelings", "relabelings"),
    }


# The values.


def test_every_key_is_tried_here_and_told_in_the_values_file():
    known = {key for key in keys_of(SCHEMA, SCHEMA) if not key.startswith("global")}
    used = {key for path in FILES for key in keys_in(values_of(path))}
    assert known - used == set()
    told = (CHART / "values.yaml").read_text()
    assert {key for key in known if f"{key.rpartition('.')[2]}:" not in told} == set()


REFUSED = {
    "a key that no chart has": (with_model(modelURL="Qwen/Qwen2.5-7B"), "modelURL"),
    "a key of the top": ({"servingengine": {}}, "servingengine"),
    "a key of the engines'": (with_engine(drain=3), "drain"),
    "a key inside": (with_model(vllmConfig={"maxModelLength": 3}), "maxModelLength"),
    "a probe's path": (with_engine(livenessProbe={"httpGet": {"path": "/"}}), "httpGet"),
    "no family": (with_model(family=None), "oneOf"),
    "two families": (with_model(familyFile="name: a"), "oneOf"),
    "a family that is no name": (with_model(family="demo; rm"), "family"),
    "an image without a name": (with_engine(repository=""), "repository"),
    "text for a number": (with_model(replicaCount="two"), "replicaCount"),
    "a number for text": (with_model(tag=1), "tag"),
    "half a GPU": (with_model(requestGPU=0.5), "requestGPU"),
    "a size without a unit that exists": (with_model(pvcStorage="50 GB"), "pvcStorage"),
    "more memory than there is": (
        with_model(vllmConfig={"gpuMemoryUtilization": 1.2}),
        "gpuMemoryUtilization",
    ),
    "two budgets": (with_model(pdb={"minAvailable": 1, "maxUnavailable": 1}), "pdb"),
    "two sources": (with_model(modelVolume={"claimName": "a", "image": "b"}), "modelVolume"),
    "no source": (with_model(modelVolume={"subPath": "a"}), "modelVolume"),
    "half a secret": (with_engine(vllmApiKey={"secretName": "a"}), "vllmApiKey"),
    "scaling to nothing": (with_model(keda={"enabled": True, "minReplicaCount": 0}), "minReplicaCount"),
    "an unknown affinity": (with_engine(sessionAffinity={"type": "cookie"}), "sessionAffinity"),
    "a policy that lets nobody in": (with_engine(networkPolicy={"ingressFrom": []}), "ingressFrom"),
    "two autoscalers": (with_model(keda={"enabled": True}, hpa={"enabled": True}), "keda and hpa"),
    "one name twice": (
        with_engine(modelSpec=with_model()["servingEngineSpec"]["modelSpec"] * 2),
        "two entries",
    ),
    "a name that is too long": (with_model(name="a" * 41), "maxLength"),
    "a path whose name is unknown": (
        with_model(family="/models/a.yaml", keda={"enabled": True}),
        "modelName",
    ),
    "a family file that is no YAML": (
        with_model(family=None, familyFile="name: [", keda={"enabled": True}),
        "not YAML",
    ),
    "a scrape without a key": (
        with_engine(serviceMonitor={"enabled": True}, vllmApiKey={"secretName": "a", "secretKey": "b"}),
        "metricsKey",
    ),
}


@pytest.mark.parametrize(("values", "word"), REFUSED.values(), ids=REFUSED)
def test_wrong_values_are_refused_by_name(values, word):
    with pytest.raises(helm_python.HelmError, match=word):
        rendered(values)


def test_a_service_whose_name_would_be_too_long_is_refused():
    with helm_python.Chart.load(CHART) as chart, pytest.raises(helm_python.HelmError, match="69 characters"):
        chart.render(with_model(name="a" * 15), name="r" * 53, namespace=NAMESPACE)
