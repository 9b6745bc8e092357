"""The chart's container, started as Kubernetes would but for the image: probes, keys, and what scales it."""

import base64
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from .charts import RELEASE, only, pod_of, rendered, selectors
from .images import wait_until_healthy

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]


def test_the_server_answers_its_probes_and_prometheus_sees_what_keda_asks_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    entry = {"name": "demo", "family": "demo", "offline": True, "keda": {"enabled": True}}
    engine = {"containerPort": port, "vllmApiKey": "# keys\none-key\nanother-key\n", "modelSpec": [entry]}
    found = rendered({"servingEngineSpec": engine})
    keys = {item: base64.b64decode(text) for item, text in only(found, "Secret")["data"].items()}
    (tmp_path / "api-keys").write_bytes(keys["api-keys"])
    [container] = pod_of(found, "demo")["containers"]
    arguments = [word.replace("/run/eft/keys", str(tmp_path)) for word in container["args"]]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "eft_server", *arguments], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until_healthy(port, log, process)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert client.get(container[probe]["httpGet"]["path"]).status_code == 200
            assert client.get("/metrics").status_code == 401
            given = {"Authorization": f"Bearer {keys['metrics'].decode()}"}
            scraped = client.get("/metrics", headers=given).raise_for_status().text
        for trigger in only(found, "ScaledObject", f"{RELEASE}-demo")["spec"]["triggers"]:
            metric, labels = selectors(trigger["metadata"]["query"])
            own = f'model_name="{labels["model_name"]}"'
            assert [line for line in scraped.splitlines() if line.startswith(f"{metric}{{") and own in line]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
