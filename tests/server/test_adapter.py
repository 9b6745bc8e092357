"""Experts that are LoRA adapters: what is read of them, what they cost, and what is refused by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from eft_server.errors import ConfigError, FamilyError
from eft_server.family.family import Source
from eft_server.family.file import ServerConfig
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config

from .conftest import save_tokenizer

LAYER = "base_model.model.model.layers.1"
QUERY = f"{LAYER}.self_attn.q_proj"
SETTINGS = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
}


def pair(module=QUERY, inputs=32, outputs=32, rank=4):
    """The two matrices of one adapted layer."""
    return {
        f"{module}.lora_A.weight": torch.zeros(rank, inputs),
        f"{module}.lora_B.weight": torch.zeros(outputs, rank),
    }


@pytest.fixture
def write_adapter(tmp_path):
    """Write an adapter's directory, its tensors and settings replaced by what is given."""

    def write(name="lora", tensors=None, **settings):
        folder = tmp_path / name
        folder.mkdir()
        save_file(pair() if tensors is None else tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
        return folder

    return write


@pytest.fixture
def inspect(make_config, write_checkpoint):
    """Inspect a family of a base, a reference and one adapter on either."""

    def inspect_adapter(reference="small", **shape):
        write_checkpoint("base", hidden_size=64)
        write_checkpoint("small", **shape)
        experts = {"helpful": {"adapter": "./lora", "reference": reference}, "other": "./small"}
        return inspect_family(make_config(experts=experts))

    return inspect_adapter


def refused(inspect, **shape):
    with pytest.raises(FamilyError, match=r"member 'helpful' \(adapter .*lora\): ") as caught:
        inspect(**shape)
    return str(caught.value)


def test_an_adapter_costs_its_low_rank_numbers_and_its_references_cache(inspect, write_adapter):
    write_adapter(tensors=pair() | pair(f"{LAYER}.self_attn.k_proj", outputs=16))
    _, small, helpful, _ = inspect().members
    assert helpful.parameters == 4 * (32 + 32) + 4 * (32 + 16)
    assert helpful.kv_bytes_per_token == small.kv_bytes_per_token
    assert (helpful.adapter_of, small.adapter_of) == ("small", None)
    assert helpful.weight_bytes("bfloat16") == 2 * helpful.parameters


def test_an_adapter_may_add_to_the_base(inspect, write_adapter):
    write_adapter(tensors=pair(inputs=64, outputs=64))
    helpful = inspect("base").members[2]
    assert (helpful.adapter_of, helpful.parameters) == ("base", 4 * (64 + 64))


def test_an_adapter_speaks_as_its_reference_does(inspect, write_adapter):
    write_adapter()
    report = inspect(chat_template="small's")
    assert report.chat_templates["helpful"] == "small's"
    assert report.vocabulary.shared_count == 22


def test_an_adapters_own_template_and_end_of_turn_win(inspect, write_adapter, words):
    save_tokenizer(write_adapter(), words, ("<bos>", "<eos>"), "own")
    report = inspect(chat_template="small's")
    assert (report.chat_templates["helpful"], report.chat_templates["small"]) == ("own", "small's")


def test_an_adapters_template_needs_no_tokenizer(inspect, write_adapter):
    (write_adapter() / "chat_template.jinja").write_text("alone")
    assert inspect().chat_templates["helpful"] == "alone"


def test_an_adapters_tokenizer_is_compared_like_any_other(inspect, write_adapter, words):
    save_tokenizer(write_adapter(), ("other", *words[1:]), ("<bos>", "<eos>"), None)
    with pytest.raises(FamilyError, match="'helpful' does not share the base's vocabulary"):
        inspect()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora is true: DoRA rescales"),
        ({"bias": "lora_only"}, "bias is 'lora_only': an adapter that trains biases"),
        ({"lora_bias": True}, "lora_bias is true"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is an array: whole modules"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"trainable_token_indices": [3]}, "adapted embeddings are not supported"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters is an array"),
        ({"layer_replication": [[0, 2]]}, "has to have the layers of its reference"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3': only LoRA"),
        ({"task_type": "SEQ_CLS"}, "causal language models"),
        ({"invented_next_year": 1}, "invented_next_year is 1: this PEFT feature is not supported"),
    ],
)
def test_adapters_that_are_more_than_low_rank_terms_are_refused(inspect, write_adapter, settings, words):
    write_adapter(**settings)
    assert words in refused(inspect)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (pair(f"{LAYER}.self_attn.x_proj"), "'model.layers.1.self_attn.x_proj', which is not a linear layer"),
        (pair("base_model.model.model.layers.2.self_attn.q_proj"), "layers.2.self_attn.q_proj', which is no"),
        (pair("base_model.model.lm_head"), "'lm_head', an embedding or the output head"),
        (
            pair("base_model.model.model.embed_tokens"),
            "'model.embed_tokens', an embedding or the output head",
        ),
        (pair(outputs=16), "are (4, 32) and (16, 4); the reference's layer"),
        (
            dict([*pair().items()][:1]),
            "one of the two low-rank matrices of 'model.layers.1.self_attn.q_proj' is missing",
        ),
        ({f"{QUERY}.lora_magnitude_vector": torch.zeros(32)}, "is not part of a low-rank term"),
        (
            {"base_model.model.model.embed_tokens.weight": torch.zeros(32, 32)},
            "is not part of a low-rank term",
        ),
        ({}, "holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit_the_reference_are_refused(inspect, write_adapter, tensors, words):
    write_adapter(tensors=tensors)
    assert words in refused(inspect)


def test_layers_of_a_mixture_of_experts_are_refused(inspect, write_adapter):
    write_adapter(tensors=pair(f"{LAYER}.mlp.shared_expert.down_proj"))
    shape = dict(model_type="qwen2_moe", num_experts=4, moe_intermediate_size=16)
    assert "inside a mixture-of-experts block" in refused(inspect, **shape)


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\x02\0\0\0\0\0\0\0{}x"[:9]])
def test_a_file_that_is_no_safetensors_is_refused(inspect, write_adapter, content):
    (write_adapter() / "adapter_model.safetensors").write_bytes(content)
    assert "adapter_model.safetensors" in refused(inspect)


def test_a_file_that_is_cut_short_is_refused(inspect, write_adapter):
    file = write_adapter() / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert "is truncated" in refused(inspect)


def test_pickled_weights_are_never_read(inspect, write_adapter):
    folder = write_adapter()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "pickled weights (.bin) are never read" in refused(inspect)


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        ({"adapter": "./lora", "model": "./small"}, "both model and adapter"),
        ({"revision": "v1"}, "neither model nor adapter"),
    ],
)
def test_an_expert_is_a_checkpoint_or_an_adapter(write_family, expert, message):
    with pytest.raises(ConfigError, match=f"experts.helpful: .*{message}"):
        load_config(write_family(experts={"helpful": expert}))


def test_an_adapters_directory_counts_from_the_family_file(make_config, tmp_path):
    config = make_config(
        experts={"helpful": {"adapter": "./lora"}, "far": {"adapter": "org/lora", "revision": "v1"}}
    )
    assert config.family["helpful"].source.model == str(tmp_path / "lora")
    assert config.family["far"].adapter == Source("org/lora", "v1")
    assert config.family["helpful"].checkpoint.model == str(tmp_path / "small")


def test_an_adapter_is_where_its_reference_is(write_family):
    expert = {"adapter": "./lora", "reference": "small"}
    small = {"model": "./small", "tensor_parallel": "sharded"}
    config = load_config(write_family(experts={"helpful": expert}, references={"small": small}))
    assert config.experts["helpful"].tensor_parallel == "sharded"
    assert ServerConfig.model_validate(config.model_dump()) == config
    family = write_family(experts={"helpful": expert | {"tensor_parallel": "sharded"}})
    with pytest.raises(
        ConfigError, match=r"helpful.tensor_parallel: an adapter is replicated as its reference is"
    ):
        load_config(family)
