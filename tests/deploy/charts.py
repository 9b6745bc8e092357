"""Helm's charts, rendered and checked without a cluster, and manifests held to Kubernetes' schemas."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml
from typer.main import get_command

from eft_server.cli import app

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm"
RELEASE = "steer"
NAMESPACE = "llm"

Document = dict[str, Any]
CUSTOM = (
    *("monitoring.coreos.com/", "keda.sh/", "networking.istio.io/"),
    *("gateway.networking.k8s.io/", "inference.networking.k8s.io/"),
)
"""Groups that are not Kubernetes' own, and whose definitions the schemas do not have."""


def values_of(path: Path) -> Document:
    return yaml.safe_load(path.read_text()) or {}


def documents(text: str) -> list[Document]:
    return [document for document in yaml.load_all(text, Loader=UniqueKeys) if document]


def rendered(values: Document | None = None) -> list[Document]:
    """What `helm install` would send to a cluster, and its tests."""
    with helm_python.Chart.load(CHART) as chart:
        templates = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    return [
        document
        for path, text in templates.items()
        if not path.endswith("NOTES.txt")
        for document in documents(text)
    ]


def notes(values: Document | None = None) -> str:
    """What `helm install` prints."""
    with helm_python.Chart.load(CHART) as chart:
        return chart.render(values, name=RELEASE, namespace=NAMESPACE)["eft-server/templates/NOTES.txt"]


def only(found: list[Document], kind: str, name: str | None = None) -> Document:
    [document] = [
        document
        for document in found
        if document["kind"] == kind and name in (None, document["metadata"]["name"])
    ]
    return document


def pod_of(found: list[Document], name: str) -> Document:
    return only(found, "Deployment", f"{RELEASE}-{name}")["spec"]["template"]["spec"]


def validate(document: Document, version: str) -> None:
    """Hold a document to Kubernetes' own schema, in which an unknown key is an error."""
    if not document["apiVersion"].startswith(CUSTOM):
        kubernetes_validate.validate(document, version, strict=True)


def serve_options(arguments: list[str]) -> Document:
    """The arguments of a container that serves, as our command line reads them."""
    return command_options("serve", arguments)


def command_options(name: str, arguments: list[str]) -> Document:
    """The same for any of our commands."""
    command, *rest = arguments
    assert command == name
    return get_command(app).commands[name].make_context(name, rest).params


def selectors(value: str) -> tuple[str, Document]:
    """The metric of a query and the labels by which it is chosen."""
    [(metric, labels)] = re.findall(r"(vllm:\w+)\{([^}]*)\}", value)
    return metric, dict(re.findall(r'(\w+)="([^"]*)"', labels))


class UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings have each key once, as Kubernetes reads them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Document:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key twice: {keys}"
        return super().construct_mapping(node, deep)


def keys_of(schema: Document, part: Document, path: str = "") -> Iterator[str]:
    """Every key that a schema knows, with dots and without the indices of lists."""
    for each in branches(schema, part):
        for key, below in each.get("properties", {}).items():
            yield f"{path}.{key}".lstrip(".")
            yield from keys_of(schema, below, f"{path}.{key}")
        if "items" in each:
            yield from keys_of(schema, each["items"], path)


def branches(schema: Document, part: Document) -> Iterator[Document]:
    """A part of a schema with what it refers to, and each of its alternatives."""
    if "$ref" in part:
        part = schema["definitions"][part["$ref"].rpartition("/")[2]]
    yield part
    for alternative in part.get("anyOf", []):
        yield from branches(schema, alternative)


def keys_in(value: Any, path: str = "") -> Iterator[str]:
    """Every key of some values, in the same form."""
    if isinstance(value, list):
        for each in value:
            yield from keys_in(each, path)
    elif isinstance(value, dict):
        for key, below in value.items():
            yield f"{path}.{key}".lstrip(".")
            yield from keys_in(below, f"{path}.{key}")
