"""The bundled family files: valid, named after their files, and honest about memory.

The checkpoints are not needed: their published shapes are written down here, with a small tokenizer.
"""

import re

import pytest
import yaml

from eft_server.family.file import ServerConfig
from eft_server.family.inspection import inspect_family
from eft_server.family.load import bundled_families, load_config
from eft_server.family.tables import KV_TOKENS

QWEN_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
QWEN_05B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
QWEN_72B = {
    "model_type": "qwen2",
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
}
LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
SMOL_1B7 = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
SMOL_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
SHAPES = {
    "qwen25-7b": (QWEN_7B, QWEN_05B),
    "qwen25-72b": (QWEN_72B, QWEN_7B),
    "llama31-70b": (LLAMA_70B, LLAMA_8B),
    "smollm2-1b7": (SMOL_1B7, SMOL_135M),
    "helpful-harmless": (QWEN_7B, QWEN_05B),
}


@pytest.fixture
def report_of(write_checkpoint):
    """Inspect a bundled family with stand-ins of its members' shapes."""

    def inspect(name):
        config = load_config(name)
        large, small = SHAPES[name]
        update = {}
        sections = {"base": config.base, **config.references, **config.experts}
        for member in config.family.names:
            shape = large if member == "base" else small
            folder = write_checkpoint(member, dtype="bfloat16", **shape)
            update[member] = sections[member].model_copy(update={"model": str(folder), "revision": None})
        experts = {expert: update[expert] for expert in config.experts}
        references = {reference: update[reference] for reference in config.references}
        family = {"base": update["base"], "references": references, "experts": experts}
        return config, inspect_family(config.model_copy(update=family))

    return inspect


@pytest.mark.parametrize("name", bundled_families())
def test_a_bundled_family_is_valid_and_named_after_its_file(name):
    config = load_config(name)
    assert config.name == name
    assert "GB of weights" in config.description or "MB of weights" in config.description


def test_the_families_that_people_try_first_are_bundled():
    assert set(bundled_families()) == {"demo", *SHAPES}


@pytest.mark.parametrize("name", SHAPES)
def test_the_stated_memory_is_what_the_shapes_need(report_of, name):
    config, report = report_of(name)
    stated = re.search(r"([\d.]+) GB of weights in bfloat16, (\d+) MB of KV", config.description)
    weights = sum(member.weight_bytes() for member in report.members)
    kv = sum(member.kv_bytes(KV_TOKENS) for member in report.members)
    assert (stated[1], stated[2]) == (f"{weights / 1e9:.1f}", f"{kv / 1e6:.0f}")


@pytest.mark.parametrize("name", SHAPES)
def test_the_gpus_that_a_preset_asks_for_divide_every_members_heads(report_of, name):
    config, report = report_of(name)
    report.require_divisible(config.vllm.get("tensor_parallel_size", 1))


@pytest.mark.parametrize("name", ["qwen25-72b", "llama31-70b"])
def test_the_memory_stated_for_each_gpu_is_right(report_of, name):
    config, report = report_of(name)
    text = bundled_families()[name].read_text()
    gpus = config.vllm["tensor_parallel_size"]
    weights = sum(member.weight_bytes() * member.weight_share(gpus) for member in report.members)
    assert f"{weights / 1e9:.1f} GB of weights on each" in text


def test_the_template_shows_every_section_and_its_comments_are_valid_too(tmp_path):
    text = bundled_families()["helpful-harmless"].read_text()
    uncommented = re.sub(
        r"^( *)# (speculative:|  draft:|  tokens:|api_key_file:)", r"\1\2", text, flags=re.MULTILINE
    )
    assert set(yaml.safe_load(uncommented)) == set(ServerConfig.model_fields)
    path = tmp_path / "mine.yaml"
    path.write_text(uncommented)
    config = load_config(path)
    assert config.speculative.draft == "helpful"
    assert config.server.api_key_file == tmp_path / "api-keys.txt"
