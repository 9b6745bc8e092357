"""Prometheus scrapes a real server under traffic, and every query of dashboard, rules and autoscaler has an answer."""

import contextlib
import math
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ..e2e.conftest import start_server, stop_server
from .monitoring import (
    DEPLOY,
    PROMETHEUS,
    RULES,
    Query,
    alert_queries,
    autoscaler_queries,
    dashboard_queries,
    labels_of_targets,
    record_queries,
    rules,
    variables,
)

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

KEYS = ("the-servers-key", "prometheuss-key")
HEADERS = {"Authorization": f"Bearer {KEYS[0]}"}
SPECULATIVE = ("--set", "speculative.draft=helpful", "--set", "speculative.tokens=4")
TIGHT = ("--set", "server.max_concurrent_requests=3", "--set", "server.max_waiting_requests=2")
QUERIES = [*dashboard_queries(), *record_queries(), *alert_queries(), *autoscaler_queries()]
EXPECTED = {200, 400, 401, 404, 429}
PATIENCE_S = 120


class Scraped:
    """A Prometheus and the server that it scrapes."""

    def __init__(self, server: str, prometheus: str) -> None:
        self.server = httpx.Client(base_url=server, headers=HEADERS, timeout=60)
        self.prometheus = httpx.Client(base_url=prometheus, timeout=30)

    def ask(self, text: str) -> list[dict[str, Any]]:
        """The series of a query, with their values now."""
        answer = self.prometheus.get("/api/v1/query", params={"query": text}).json()
        assert answer["status"] == "success", f"{text}: {answer.get('error')}"
        return answer["data"]["result"]

    def labels(self, metric: str) -> set[str]:
        """The labels of a metric's series."""
        return {label for series in self.ask(metric) for label in series["metric"]} - {"__name__"}

    def request(self, body: dict[str, Any]) -> int:
        """Send a chat, or a completion of a prompt, and return the status."""
        path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
        question = {"messages": [{"role": "user", "content": "Who governs Market Mossop?"}]}
        answer = self.server.post(path, json=body if "prompt" in body else question | body)
        return answer.status_code

    def traffic(self) -> set[int]:
        """A second or so of requests with several weights, more than there is room for, and some that are refused."""
        crowd: list[dict[str, Any]] = [
            *({"eft": {"weights": {"helpful": w, "harmless": 1 - w}, "scale": 0.5 + w}} for w in (0, 0.3, 1)),
            {"model": "demo-helpful", "stream": True},
            {"model": "demo/base", "max_tokens": 8},
            {"prompt": ["One day", "Another day"], "max_tokens": 24},
            {},
            {},
        ]
        refused = [{"eft": {"weights": {"helpful": 99}}}, {"model": "unheard-of"}, {"unheard-of": 1}]
        wrong = self.server.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code
        with ThreadPoolExecutor(len(crowd)) as pool:
            return {wrong, *pool.map(self.request, crowd), *map(self.request, refused)}


def tool(name: str) -> str:
    """The path of one of Prometheus's programs."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(
            f"{name} is missing: install Debian's package prometheus, which has prometheus and promtool"
        )
    return path


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


def configuration(folder: Path, server: str, port: int) -> Path:
    """The deployed configuration, with this server as its target and every second instead of every 15."""
    shutil.copytree(PROMETHEUS, folder)
    (folder / "key").write_text(KEYS[1])
    path = folder / "prometheus.yml"
    config = yaml.safe_load(path.read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    targets = {"eft": httpx.URL(server).netloc.decode(), "prometheus": f"127.0.0.1:{port}"}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]], "labels": labels_of_targets()}]
    path.write_text(yaml.safe_dump(config))
    return path


@contextlib.contextmanager
def running_prometheus(config: Path, data: Path, port: int) -> Iterator[str]:
    command = [
        tool("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (data.parent / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    tool("prometheus")
    folder = tmp_path_factory.mktemp("monitoring")
    (folder / "keys").write_text("\n".join(KEYS))
    server = start_server("demo", "--api-key-file", str(folder / "keys"), *SPECULATIVE, *TIGHT)
    try:
        port = free_port()
        config = configuration(folder / "prometheus", server.url, port)
        with running_prometheus(config, folder / "data", port) as prometheus:
            scraped = Scraped(server.url, prometheus)
            warm_up(scraped)
            yield scraped
    finally:
        assert stop_server(server) == 0


def warm_up(scraped: Scraped) -> None:
    """Send requests until every rule has been evaluated over some that differ between two scrapes."""
    records = [rule["record"] for rule in rules() if "record" in rule]
    statuses: set[int] = set()
    missing = records
    deadline = time.monotonic() + PATIENCE_S
    while (missing or not statuses >= EXPECTED) and time.monotonic() < deadline:
        statuses |= scraped.traffic()
        with contextlib.suppress(httpx.TransportError):  # Prometheus may be starting.
            missing = [record for record in records if not numbers(scraped.ask(record))]
    assert not missing, f"no numbers after {PATIENCE_S} s: {missing}"
    assert statuses >= EXPECTED
    # Gauges are seen while something waits, and rates of the last minute go on.
    scraped.traffic()


def numbers(series: list[dict[str, Any]]) -> list[float]:
    """The values that are numbers: a share of nothing is NaN."""
    values = [float(each["value"][1]) for each in series]
    return [value for value in values if not math.isnan(value)]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_a_query_has_an_answer(scraped: Scraped, query: Query) -> None:
    assert numbers(scraped.ask(query.text)), query.text


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_a_query_names_labels_that_its_metrics_have(scraped: Scraped, query: Query) -> None:
    selected, metrics, grouped = query.used()
    for metric, label in selected:
        assert label in scraped.labels(metric), f"{metric} has no label {label}"
    known = set().union(*map(scraped.labels, metrics))
    assert grouped <= known


@pytest.mark.parametrize(("name", "metric", "label"), list(variables()))
def test_a_variable_of_the_dashboard_has_values(scraped: Scraped, name: str, metric: str, label: str) -> None:
    found = {series["metric"].get(label) for series in scraped.ask(metric)}
    assert found and None not in found
    if name == "expert":
        assert found == {"helpful", "harmless"}


def test_prometheus_reads_with_the_key_of_its_file(scraped: Scraped) -> None:
    assert scraped.server.get("/metrics", headers={"Authorization": "Bearer none"}).status_code == 401
    assert numbers(scraped.ask('up{job="eft"}')) == [1]


def test_prometheus_finds_nothing_wrong_with_the_rules(scraped: Scraped) -> None:
    groups = scraped.prometheus.get("/api/v1/rules").json()["data"]["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert len(found) == len(list(rules()))
    assert [(rule["name"], rule.get("lastError")) for rule in found if rule["health"] != "ok"] == []


def test_the_numbers_are_those_of_the_requests(scraped: Scraped) -> None:
    text = scraped.server.get("/metrics").text
    assert 'eft:request_errors_total{code="too_many_requests",status="429"}' in text
    [share] = numbers(scraped.ask("instance:eft_drafts_accepted:ratio_15m"))
    assert 0 < share < 1
    medians = {s["metric"]["expert"]: s for s in scraped.ask("instance:eft_requested_weight:p50_15m")}
    assert medians.keys() == {"helpful", "harmless"}
    assert all(0 <= value <= 1.05 for value in numbers(list(medians.values())))


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    for kind, file in (("config", PROMETHEUS / "prometheus.yml"), ("rules", RULES)):
        command = [tool("promtool"), "check", kind, "--lint=all", "--lint-fatal", str(file)]
        subprocess.run(command, check=True)


def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    subprocess.run(
        [tool("promtool"), "test", "rules", str(Path(__file__).with_name("rules_test.yml"))], check=True
    )


def test_composes_files_keep_to_the_specification() -> None:
    files = [str(path) for path in sorted(DEPLOY.glob("compose*.yaml"))]
    assert len(files) > 1
    uv = str(Path(sys.executable).with_name("uv"))
    checker = [uv, "tool", "run", "--from", "check-jsonschema==0.39.0", "check-jsonschema"]
    subprocess.run([*checker, "--builtin-schema", "vendor.compose-spec", *files], check=True)
