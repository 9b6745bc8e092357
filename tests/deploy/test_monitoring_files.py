"""The files of Compose, Prometheus and Grafana agree with each other and with what the server exports."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from .monitoring import (
    DASHBOARD,
    DEPLOY,
    GRAFANA,
    PROMETHEUS,
    Query,
    alert_queries,
    autoscaler_queries,
    dashboard_queries,
    panels,
    record_queries,
    rules,
    variables,
)

ROOT = DEPLOY.parent
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OVERRIDES = {path.name: yaml.safe_load(path.read_text()) for path in sorted(DEPLOY.glob("compose.*.yaml"))}
SERVICES = COMPOSE["services"]
QUERIES = [*dashboard_queries(), *record_queries(), *alert_queries(), *autoscaler_queries()]
WRITTEN_BY_PROMETHEUS = {"up"}


def exported() -> set[str]:
    """The metrics that vLLM and this package define, as their sources name them."""
    found = find_spec("vllm")
    assert found is not None and found.submodule_search_locations
    vllm = Path(found.submodule_search_locations[0])
    sources = [
        vllm / "v1" / "metrics" / "loggers.py",
        vllm / "v1" / "spec_decode" / "metrics.py",
        *(ROOT / "server" / "eft_server" / "api").rglob("metrics.py"),
    ]
    assert all(path.exists() for path in sources)
    return {name for path in sources for name in re.findall(r'"((?:vllm|eft):\w+)"', path.read_text())}


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_a_query_names_metrics_that_are_exported_or_recorded(query: Query) -> None:
    _, metrics, _ = query.used()
    known = exported() | {rule["record"] for rule in rules() if "record" in rule} | WRITTEN_BY_PROMETHEUS
    assert metrics
    for metric in metrics:
        assert metric in known or re.sub(r"_(total|bucket|count|sum)$", "", metric) in known, metric


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_a_query_is_closed_where_it_was_opened(query: Query) -> None:
    text = re.sub(r'"[^"]*"', "", query.text)
    assert '"' not in text
    open_ones = []
    for character in text:
        if character in "([{":
            open_ones.append(character)
        elif character in ")]}":
            assert open_ones and open_ones.pop() + character in ("()", "[]", "{}")
    assert not open_ones
    assert "$" not in text, "a variable that the dashboard does not have"


def test_the_used_metrics_and_labels_of_a_query_are_found() -> None:
    text = (
        'sum by (le, a) (rate(vllm:x_bucket{b=~"c|d{", e!="f"}[5m])) / on () group_left (g) (1e3 * up) > 0.5'
    )
    selected, metrics, grouped = Query("", text).used()
    assert selected == {("vllm:x_bucket", "b"), ("vllm:x_bucket", "e")}
    assert metrics == {"vllm:x_bucket", "up"}
    assert grouped == {"le", "a", "g"}


def test_alerts_tell_an_operator_how_bad_it_is_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    names = [rule["alert"] for rule in alerts]
    assert len(names) == len(set(names)) > 10
    for rule in alerts:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert "$labels.instance" in rule["annotations"]["summary"]
        assert len(rule["annotations"]["description"]) > 60


def test_the_documentation_has_every_metric_of_this_package_and_every_alert() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    for name in exported():
        if name.startswith("eft:"):
            assert re.search(rf"`{name}(_total)?`", page), name
    alerts = [rule["alert"] for rule in rules() if "alert" in rule]
    assert re.findall(r"^\| (Eft\w+) \|", page, re.MULTILINE) == alerts


def test_everything_that_is_recorded_is_used() -> None:
    used = {metric for query in QUERIES for metric in query.used()[1]}
    assert {rule["record"] for rule in rules() if "record" in rule} - used <= {
        "instance:eft_requested_weight:p50_15m"  # For alerts of those who know which weights to expect.
    }


def test_the_dashboards_panels_are_complete() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(titles) == len(set(titles)) and all(titles)
    for panel in panels():
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(references) == len(set(references)), panel["title"]


def test_the_dashboards_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_the_dashboard_asks_the_data_source_that_is_provisioned() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    [source] = provisioned["datasources"]
    used = set(re.findall(r'"datasource": (\{[^}]*\})', DASHBOARD.read_text()))
    assert {(json.loads(text)["type"], json.loads(text)["uid"]) for text in used} == {
        (source["type"], source["uid"])
    }
    for panel in panels():
        assert panel["datasource"]["uid"] == source["uid"]
        assert all(target["datasource"]["uid"] == source["uid"] for target in panel["targets"])
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert published(SERVICES[host]) == port


def test_the_dashboard_is_where_grafana_looks_for_it() -> None:
    [provider] = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "eft.yaml").read_text())[
        "providers"
    ]
    folders = {target: source for source, target in mounts(SERVICES["grafana"]).items()}
    assert DEPLOY / folders[provider["options"]["path"]] == DASHBOARD.parent
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"


def test_every_variable_of_the_dashboard_is_used_and_every_used_one_is_there() -> None:
    used = set(re.findall(r"\$(\w+)", " ".join(t["expr"] for panel in panels() for t in panel["targets"])))
    assert used - {"__rate_interval"} == {name for name, _, _ in variables()}


def test_prometheus_scrapes_the_service_where_it_listens() -> None:
    jobs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    [target] = next(job for job in jobs if job["job_name"] == "eft")["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert published(SERVICES[host]) == port
    assert f"EXPOSE {port}" in (ROOT / "Dockerfile").read_text()
    assert f":{port}/readyz" in SERVICES[host]["healthcheck"]["test"][-1]


def test_prometheus_reads_the_key_where_the_secret_is_mounted() -> None:
    jobs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    file = next(job for job in jobs if job["job_name"] == "eft")["authorization"]["credentials_file"]
    [secret] = OVERRIDES["compose.keys.yaml"]["services"]["prometheus"]["secrets"]
    folder = mounts(SERVICES["prometheus"])["./monitoring/prometheus"]
    assert secret["target"] == f"{folder}/{file}"
    assert (PROMETHEUS / file).is_file(), "a file to mount the secret on, in a folder that is read-only"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_write_where_it_has_to_and_nowhere_else(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service["ports"])
    for source in mounts(service):
        if source.startswith("."):
            assert (DEPLOY / source).is_dir()
            assert f"{source}:{mounts(service)[source]}:ro" in service["volumes"]


def test_volumes_and_secrets_are_declared_and_used() -> None:
    used = {
        source.partition(":-")[2].rstrip("}") or source
        for service in SERVICES.values()
        for source in mounts(service)
        if not source.startswith(".")
    }
    assert used == set(COMPOSE["volumes"])
    keys = OVERRIDES["compose.keys.yaml"]
    wanted = [secret for service in keys["services"].values() for secret in service["secrets"]]
    assert {s if isinstance(s, str) else s["source"] for s in wanted} == set(keys["secrets"])


def test_images_have_a_version_or_are_built_here() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for file in (COMPOSE, *OVERRIDES.values()):
        for service in file["services"].values():
            if "build" in service:
                assert service["image"] == f"eft-server:{service['build']['target']}"
                assert service["build"]["target"] in stages
            elif "image" in service:
                assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])


def test_the_server_is_started_as_its_image_starts_it() -> None:
    [line] = re.findall(r"^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    started = [argument.replace("${FAMILY:-demo}", "demo") for argument in SERVICES["eft"]["command"]]
    assert started == json.loads(line)
    with_keys = OVERRIDES["compose.keys.yaml"]["services"]["eft"]["command"]
    assert with_keys[: len(started)] == SERVICES["eft"]["command"]


def test_overrides_name_services_that_there_are() -> None:
    for name, file in OVERRIDES.items():
        assert set(file["services"]) <= set(SERVICES), name


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Targets by source, of a service's volumes in their short form."""
    found = [re.fullmatch(r"(\$\{[^}]*\}|[^:]+):([^:]+)(:ro)?", volume) for volume in service["volumes"]]
    return {match[1]: match[2] for match in found if match}


def published(service: dict[str, Any]) -> str:
    """The port inside the container."""
    [port] = service["ports"]
    return str(port).rpartition(":")[2]
