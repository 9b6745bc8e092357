"""What the files under deploy ask Prometheus, and what they ask about."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "monitoring" / "prometheus"
GRAFANA = DEPLOY / "monitoring" / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "eft.json"
CHART = DEPLOY / "helm"
RULES = PROMETHEUS / "rules" / "eft.yml"

_THRESHOLD = re.compile(r"^(?P<series>.+?) (?:==|!=|>=|<=|>|<) -?[0-9.]+$", re.DOTALL)
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME = re.compile(r"(?<![\w:.])[A-Za-z_:][\w:]*(?!\s*\()(?![\w:])")
_OPERATORS = {"and", "or", "unless", "bool", "offset"}


@dataclass(frozen=True)
class Query:
    """A query and where it stands."""

    where: str
    text: str

    def used(self) -> tuple[set[tuple[str, str]], set[str], set[str]]:
        """The labels that a selector names, with its metric; the metrics; and the labels that an operation names."""
        text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', self.text)
        text = re.sub(r"\[[^\]]*\]", "", text)
        grouped = {label.strip() for found in _GROUPING.findall(text) for label in found.split(",")} - {""}
        text = _GROUPING.sub("", text)
        selected = {
            (metric, label)
            for metric, inside in re.findall(r"([A-Za-z_:][\w:]*)\{([^}]*)\}", text)
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)
        }
        metrics = set(_NAME.findall(re.sub(r"\{[^}]*\}", "", text))) - _OPERATORS
        return selected, metrics, grouped


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels that show something."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def dashboard_queries() -> Iterator[Query]:
    """The queries of the panels, for every model, server and expert."""
    for panel in panels():
        for target in panel["targets"]:
            text = re.sub(r"\$(model_name|instance|expert)", ".*", target["expr"])
            yield Query(f"{panel['title']} {target['refId']}", text.replace("$__rate_interval", "1m"))


def rules() -> Iterator[dict[str, Any]]:
    """The records and the alerts."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from group["rules"]


def record_queries() -> Iterator[Query]:
    """What the rules record."""
    for rule in rules():
        if "record" in rule:
            yield Query(rule["record"], rule["expr"])


def alert_queries() -> Iterator[Query]:
    """What the alerts compare with a number: an alert that has nothing to compare never fires."""
    for rule in rules():
        if "alert" in rule:
            found = _THRESHOLD.match(rule["expr"])
            assert found, f"{rule['alert']} is not a series, an operator and a number: {rule['expr']}"
            yield Query(rule["alert"], found["series"])


def autoscaler_queries() -> Iterator[Query]:
    """What KEDA asks as the chart sets it up, and what Prometheus's adapter asks for an HPA."""
    if not CHART.exists():
        return
    from .charts import rendered

    model = {"name": "demo", "family": "demo", "keda": {"enabled": True}}
    values = {"servingEngineSpec": {"modelSpec": [model], "serviceMonitor": {"enabled": True}}}
    for document in rendered(values):
        if document["kind"] == "ScaledObject":
            for trigger in document["spec"]["triggers"]:
                yield Query("KEDA", trigger["metadata"]["query"])
    for rule in yaml.safe_load((CHART / "prometheus-adapter.yaml").read_text())["rules"]["custom"]:
        series = re.findall(r'__name__="([^"]+)"', rule["seriesQuery"])[0]
        text = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
        yield Query("HPA", text.replace("<<.LabelMatchers>>", 'namespace!=""'))


def labels_of_targets() -> dict[str, str]:
    """Labels that Prometheus's operator gives a target in a cluster, as the autoscaler's queries have them."""
    texts = " ".join(query.text for query in autoscaler_queries())
    return {"pod": "demo-0", **dict(re.findall(r'(namespace|service)="([^"]*)"', texts))}


def variables() -> Iterator[tuple[str, str, str]]:
    """The dashboard's variables: name, metric and label."""
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        found = re.fullmatch(r"label_values\(([\w:]+), (\w+)\)", variable["query"]["query"])
        assert found, variable["query"]
        yield variable["name"], found[1], found[2]
