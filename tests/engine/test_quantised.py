"""Members with schemes of their own, beside members with others and with none."""

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from eft_server.engine.launcher.plan import plan
from eft_server.engine.worker import quantisation
from eft_server.engine.worker.cpu_kernels import adds_up_eight_bits, has_four_bit_kernel
from eft_server.errors import FamilyError
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config

from .adapters import terms, write_adapter
from .checkpoints import write_checkpoint
from .driver import Engine
from .quantised import quantise, round_inputs
from .reference import Reference
from .test_composite import prompt

pytestmark = pytest.mark.engine

VLLM = (
    "vllm: {dtype: %s, max_model_len: 256, max_num_seqs: 16, max_num_batched_tokens: 64, block_size: 32, "
    "kv_cache_memory_bytes: 67108864, disable_log_stats: false}\n"
)
QUANTISED_BASE = (
    "name: small\nbase: ./base-int8\nreferences: {ref: ./ref}\n"
    "experts: {expert: {model: ./expert-int8, reference: ref}, lora: {adapter: ./lora, reference: base}}\n"
    "limits: {weight: {min: -2, max: 2}}\n"
) + VLLM % "float32"
# An expert may have the name of a method of torch's modules: `float`.
QUANTISED_MEMBERS = (
    "name: small\nbase: ./base\nreferences: {ref: ./ref-int8}\n"
    "experts: {expert: ./expert-int4, float: ./expert, gptq: ./expert-gptq, awq: ./expert-awq}\n"
    "limits: {weight: {min: -2, max: 2}}\n"
) + VLLM % "bfloat16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised")
    for seed, (name, kind) in enumerate({"base": "llama", "ref": "llama", "expert": "qwen2"}.items()):
        write_checkpoint(folder / name, seed, kind, spread=0.15, tie_word_embeddings=name != "expert")
    for name, bits in (("base", 8), ("expert", 8), ("ref", 8), ("expert", 4)):
        quantise(folder / f"{name}-int{bits}", folder / name, bits)
    for method in ("gptq", "awq"):
        quantise(folder / f"expert-{method}", folder / "expert", 4, method)
    write_adapter(folder / "lora", folder / "base", 5, dict(q_proj=4, o_proj=4, up_proj=4), spread=0.15)
    (folder / "quantised-base.yaml").write_text(QUANTISED_BASE)
    (folder / "quantised-members.yaml").write_text(QUANTISED_MEMBERS)
    return folder


def largest_error(engine: Engine, reference: Reference, settings: list[list[float]]) -> dict[int, float]:
    """For each setting, by how much a log-probability of a given text is off, its likelier tokens' included."""
    jobs = [(prompt(400 + i, 40), setting) for i, setting in enumerate(settings)]
    requests: list[dict[str, Any]] = [
        dict(prompt=tokens, coefficients=setting, temperature=0.0, max_tokens=1, prompt_logprobs=3)
        for tokens, setting in jobs
    ]
    errors = {}
    for index, (job, output) in enumerate(zip(jobs, engine.generate(requests), strict=True)):
        rows = reference.logprobs(*job)
        reported = output["prompt_logprobs"][1:]
        errors[index] = max(
            abs(value - float(row[int(token)]))
            for row, entry in zip(rows, reported, strict=False)
            for token, value in entry.items()
        )
    return errors


@pytest.fixture(scope="module")
def quantised_base(folder: Path) -> Iterator[Engine]:
    if not adds_up_eight_bits():
        pytest.skip("8-bit products come out wrong on this CPU, and the server refuses them")
    engine = Engine(folder / "quantised-base.yaml")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def quantised_members(folder: Path) -> Iterator[Engine]:
    if not (adds_up_eight_bits() and has_four_bit_kernel()):
        pytest.skip("this CPU has no right kernels for 8 or 4 bits, and the server refuses them")
    engine = Engine(folder / "quantised-members.yaml")
    yield engine
    engine.close()


def alone_and_together(vector: list[float]) -> list[list[float]]:
    return [*([float(i == j) for j in range(len(vector))] for i in range(len(vector))), vector]


def test_a_quantised_base_runs_beside_float_and_quantised_members(
    quantised_base: Engine, folder: Path
) -> None:
    """And under an adapter. An activation that is rounded the other way moves a log-probability by up to a tenth."""
    floats = ("base-int8-float", "ref", "expert-int8-float", "base-int8-float")
    reference = Reference([folder / name for name in floats], vocab_size=96, shared=93)
    for member in (0, 2):
        round_inputs(reference.models[member])
    round_inputs(reference.models[3], terms(folder / "lora"))
    errors = largest_error(quantised_base, reference, alone_and_together([1.0, -0.9, 0.9, 0.4]))
    assert max(errors.values()) < 0.2, errors
    assert errors[1] < 1e-3, "the float member"


def test_quantised_members_run_beside_a_float_base(quantised_members: Engine, folder: Path) -> None:
    """In bfloat16, which 4-bit weights need on CPUs: against float32, so with bfloat16's own error."""
    packed = "expert-int4-float"
    floats = ("base", "ref-int8-float", packed, "expert", packed, packed)
    reference = Reference([folder / name for name in floats], vocab_size=96, shared=93)
    round_inputs(reference.models[1])
    errors = largest_error(quantised_members, reference, alone_and_together([1.0, -0.9, 0.6, 0.2, 0.3, 0.2]))
    assert max(errors.values()) < 0.5, errors


def test_four_bits_in_float32_are_refused_on_cpus(folder: Path) -> None:
    config = load_config(folder / "quantised-members.yaml", ["vllm.dtype=float32", "references.ref=./ref"])
    with pytest.raises(
        FamilyError, match=r"member 'expert'.*'compressed-tensors'.*set vllm.dtype to bfloat16"
    ):
        plan(config, inspect_family(config))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are x86's")
def test_which_kernels_are_right_goes_with_what_the_cpu_has() -> None:
    has = torch.cpu.get_capabilities()
    assert adds_up_eight_bits() == (has["avx512_vnni"] or has["avx_vnni"])
    assert has_four_bit_kernel() == has["avx512_f"]


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ("adds_up_eight_bits", r"member 'ref'.*'compressed-tensors' \(8-bit int weights.*only with VNNI"),
        (
            "has_four_bit_kernel",
            r"member 'expert'.*'compressed-tensors' \(4-bit int weights.*need a kernel for AVX-512",
        ),
    ],
)
def test_schemes_without_a_right_kernel_on_this_cpu_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, probe: str, words: str
) -> None:
    """Where vLLM would compute something else, or end at the first request."""
    for kernel in ("adds_up_eight_bits", "has_four_bit_kernel"):
        monkeypatch.setattr(quantisation, kernel, lambda there=kernel != probe: there)
    config = load_config(folder / "quantised-members.yaml")
    with pytest.raises(FamilyError, match=words):
        plan(config, inspect_family(config))


def test_memory_counts_what_is_packed_and_what_is_not(folder: Path) -> None:
    """To the byte: 8 bits a weight, scales and everything else in the engine's dtype."""
    config = load_config(folder / "quantised-base.yaml")
    base, ref = inspect_family(config).members[:2]
    packed = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 128)
    scales = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)
    assert base.weight_bytes("bfloat16") == packed + 2 * (ref.parameters - packed + scales)
    assert (base.parameters, base.weights_are_bounded) == (ref.parameters, False)
