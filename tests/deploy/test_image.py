"""The image: built on this machine without a daemon, read-only, and run as any user."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from .images import Container, base_image, buildah, terminate, wait_until_healthy

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
TAG = "localhost/eft-server:check"
MOST_BYTES = 3e9
PORT = 8231
STRANGER = "12345:0"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    base = base_image(tmp_path_factory.mktemp("base") / "root")
    environment = os.environ | {"BASE": base, "BUILDAH_ISOLATION": "chroot"}
    command = ["sh", str(ROOT / "deploy" / "build-image.sh"), "cpu", TAG]
    subprocess.run(command, check=True, env=environment)
    container = buildah("from", TAG)
    config = json.loads(buildah("inspect", "--type", "image", TAG))["Docker"]["config"]
    yield Container(Path(buildah("mount", container)), config)
    buildah("rm", container)


def test_its_configuration_is_what_hosts_expect(image: Container) -> None:
    config = image.config
    assert config["User"] == "10001:0"
    assert config["Entrypoint"] == ["tini", "--", "eft"]
    assert config["Cmd"] == ["serve", "demo", "--host", "0.0.0.0"]
    assert set(config["Volumes"]) == {"/tmp", "/home/eft", "/cache"}
    assert "8000/tcp" in config["ExposedPorts"]
    assert "/livez" in " ".join(config["Healthcheck"]["Test"])
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_it_holds_what_the_lock_names_and_nothing_that_builds_or_tests(image: Container) -> None:
    [packages] = (image.root / "opt" / "eft" / "lib").glob("python3*/site-packages")
    installed = {path.name.split("-")[0].lower().replace("_", "-") for path in packages.glob("*.dist-info")}
    lock = (ROOT / "deploy" / "requirements-cpu.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    assert {name.replace(".", "-") for name in installed} == locked | {"eft-server"}
    for tool in ("gcc", "cc", "g++", "git", "make"):
        assert not (image.root / "usr" / "bin" / tool).exists()
    assert not (image.root / "opt" / "eft" / "bin" / "pip").exists()


def test_it_is_no_larger_than_it_has_to_be(image: Container) -> None:
    size = subprocess.run(["du", "-sb", str(image.root)], check=True, capture_output=True, text=True).stdout
    print(f"{int(size.split()[0]) / 1e9:.2f} GB unpacked")
    assert int(size.split()[0]) < MOST_BYTES


def test_the_demo_answers_from_a_read_only_container_of_an_unknown_user(
    image: Container, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with image.running(STRANGER, *image.config["Cmd"], "--port", str(PORT), log=log) as process:
        wait_until_healthy(PORT, log, process)
        for path in ("/livez", "/readyz"):
            with urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=10) as response:
                assert response.status == 200
        body = {"messages": [{"role": "user", "content": "Who governs Market Mossop?"}], "temperature": 0}
        request = Request(
            f"http://127.0.0.1:{PORT}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert answer["choices"][0]["message"]["content"]
        assert answer["eft"]["weights"] == {"helpful": 0.5, "harmless": 0.5}
        # On log-probabilities a kernel is compiled where there is a compiler; here there is none.
        request.data = json.dumps(body | {"logprobs": True, "top_logprobs": 2}).encode()
        with urlopen(request, timeout=60) as response:
            assert json.load(response)["choices"][0]["logprobs"]["content"]
        assert terminate(process) == 0
    assert "Traceback" not in log.read_text()


def test_ranks_that_lack_shared_memory_are_refused_with_the_option_that_gives_it(
    image: Container, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    command = ["serve", "demo", "--port", str(PORT), "--set", "vllm.tensor_parallel_size=2"]
    with image.running(STRANGER, *command, log=log) as process:
        assert process.wait(timeout=120) != 0
    assert re.search(r"/dev/shm has 64 MiB free.*--shm-size 640m", log.read_text(), re.DOTALL)
    assert "Traceback" not in log.read_text()
