"""Members of many architectures in one family, each against transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from .checkpoints import write_checkpoint
from .driver import Engine
from .reference import Reference
from .test_activations import states
from .test_composite import prompt

pytestmark = pytest.mark.engine

LLAMA3 = dict(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
MIXTURE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)

MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("gemma2", dict(num_hidden_layers=4, sliding_window=32, query_pre_attn_scalar=32, spread=0.2)),
    "ref": ("llama", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", dict(sliding_window=32)),
    "starcoder2": ("starcoder2", {}),
    "phi3": ("phi3", {}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", dict(logits_scaling=3.0)),
    "cohere": ("cohere", dict(logit_scale=0.25)),
    "gemma3": ("gemma3_text", dict(sliding_window=32, query_pre_attn_scalar=32, spread=0.2)),
    "wider-window": ("mistral", dict(sliding_window=48)),
    "tied": ("llama", dict(tie_word_embeddings=True)),
    "untied": ("qwen2", dict(tie_word_embeddings=False)),
    "theta": ("llama", dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "llama3-rope": ("llama", dict(rope_parameters=dict(LLAMA3, rope_theta=1e4))),
    "yarn": ("qwen2", dict(rope_parameters=dict(YARN, rope_theta=1e4))),
    "mixtral": ("mixtral", dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen2-moe": ("qwen2_moe", dict(MIXTURE, shared_expert_intermediate_size=64)),
    "olmoe": ("olmoe", dict(num_experts=4, num_experts_per_tok=2)),
    "gpt-neox": ("gpt_neox", dict(num_key_value_heads=2)),
}
"""Soft-capped logits, sliding windows of two sizes, in every layer and in every other, norms with biases, fused
projections, scaled logits, tied and untied heads, rotary embeddings of several kinds, mixtures of experts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("architectures")
    for seed, (name, (model_type, sizes)) in enumerate(MEMBERS.items()):
        write_checkpoint(folder / name, seed, model_type, **sizes)
    experts = ", ".join(f"{name}: ./{name}" for name in list(MEMBERS)[2:])
    (folder / "family.yaml").write_text(
        f"name: many\nbase: ./base\nreferences: {{ref: ./ref}}\nexperts: {{{experts}}}\n"
        "vllm: {dtype: float32, max_model_len: 256, max_num_seqs: 16, max_num_batched_tokens: 64, "
        "block_size: 32, kv_cache_memory_bytes: 134217728, disable_log_stats: false}\n"
    )
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = Engine(folder / "family.yaml")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference([folder / name for name in MEMBERS], vocab_size=96, shared=93)


def coefficients(**weights: float) -> list[float]:
    return [weights.get(name, 0.0) for name in MEMBERS]


@pytest.mark.parametrize("name", MEMBERS)
def test_every_architecture_equals_transformers(engine: Engine, reference: Reference, name: str) -> None:
    """Alone and steering the base; a prompt longer than the windows and than a chunk, and a short one."""
    settings = [
        coefficients(**{name: 1.0}),
        coefficients(base=1.0, ref=-0.6, **({name: 0.6} if name not in ("base", "ref") else {})),
    ]
    jobs = [(prompt(200 + length, length), setting) for setting in settings for length in (100, 6)]
    requests = [
        dict(prompt=tokens, coefficients=setting, temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=3)
        for tokens, setting in jobs
    ]
    for (tokens, setting), output in zip(jobs, engine.generate(requests), strict=True):
        choice = output["choices"][0]
        assert choice["tokens"] == reference.greedy(tokens, setting, 8)
        expected = reference.logprobs(tokens + choice["tokens"][:-1], setting)[len(tokens) - 1 :]
        for row, reported in zip(expected, choice["logprobs"], strict=True):
            for token, value in reported.items():
                assert value == pytest.approx(float(row[int(token)]), abs=1e-3)


UNKNOWN = {"cohere": "residual"}
"""Models that give a state in a form that is refused, since what it means is not certain."""


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("site", ["residual", "mlp"])
def test_activations_of_every_architecture_equal_transformers(
    engine: Engine, reference: Reference, name: str, site: str
) -> None:
    place = list(MEMBERS).index(name)
    text, targets = prompt(300 + place, 60), prompt(400 + place, 30)
    layers = [0, MEMBERS[name][1].get("num_hidden_layers", 2) - 1]
    asked = {"members": [place], "layers": [layers], "site": site, "pool": "none"}
    vectors = [coefficients(base=1.0)]
    scoring = {"first": 59, "targets": targets, "vectors": vectors, "activations": asked}
    [output] = engine.generate([{"prompt": [*text, *targets], "scoring": scoring}])
    if UNKNOWN.get(name) == site:
        assert "in a form that is not known" in output["activations"]
        return
    for layer in layers:
        expected = states(reference, text, targets, place, layer, asked)
        found = torch.tensor(output["activations"][str(place)][str(layer)])
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
