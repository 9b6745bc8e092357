"""The composite under vLLM's Ray executor, against plain transformers.

VLLM schedules Ray's workers by GPU, so the test tells Ray of GPUs that are not there, and vLLM that the CPU is
counted in them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .driver import Engine
from .reference import Reference
from .small_family import Running
from .test_composite import MIXED, SETTINGS, check, greedy, prompt

pytest.importorskip("ray", reason="Ray is not installed: pip install 'eft-server[ray]'")

STUB = Path(__file__).parent / "ray_cpu"


@pytest.fixture(scope="module")
def under_ray(family: Path, reference: Reference) -> Iterator[Running]:
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(STUB), os.environ.get("PYTHONPATH")))),
        "RAY_OVERRIDE_RESOURCES": '{"GPU": 1}',
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    engine = Engine(family, ["vllm.distributed_executor_backend=ray"], environment=environment)
    yield Running(engine, reference, v2=False, speculative=False)
    engine.close()


def test_the_composite_under_ray_equals_the_reference(under_ray: Running) -> None:
    check(under_ray, [greedy(prompt(340 + i, 5 + 20 * i), setting, 6) for i, setting in enumerate(SETTINGS)])


def test_the_weights_of_a_request_reach_rays_workers(under_ray: Running) -> None:
    tokens = prompt(350, 12)
    outputs = check(under_ray, [greedy(tokens, setting, 8) for setting in (SETTINGS[0], MIXED)])
    assert outputs[0]["choices"][0]["tokens"] != outputs[1]["choices"][0]["tokens"]
