"""Plain `vllm serve` with our plugins, over a packed directory."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import pytest

from .conftest import START_TIMEOUT_S, Server

MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""What the command `vllm serve` runs; the CPU build's command cannot start."""


def pack(family: Path, directory: Path) -> Path:
    """`eft pack`, hard-linked."""
    eft = str(Path(sys.executable).with_name("eft"))
    subprocess.run([eft, "pack", str(family), str(directory), "--link"], check=True, capture_output=True)
    return directory


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def start_vllm(model: Path, *options: str, environment: Mapping[str, str] | None = None) -> Server:
    """Run vLLM's server on a free port and wait until it is ready."""
    port = free_port()
    process = launch(model, "--host", "127.0.0.1", "--port", str(port), *options, environment=environment)
    return until_ready(Server(process), port)


def until_ready(server: Server, port: int) -> Server:
    """Wait until a server that has been launched answers on its port."""
    threading.Thread(target=server.read, args=(threading.Event(),), daemon=True).start()
    server.url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{server.url}/health").status_code == 200:
                return server
        except httpx.TransportError:
            time.sleep(0.2)
    server.process.kill()
    pytest.fail("vLLM did not start:\n" + "".join(server.lines[-40:]))


def launch(model: Path, *options: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Run vLLM's server."""
    command: Sequence[str] = [sys.executable, "-m", MODULE, "--model", str(model), *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"VLLM_PLUGINS": "eft"} | (environment or {}),
    )
