"""Whether checkpoints form a family, what they share and what they cost."""

import json
import shutil

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, T5Config

from eft_server.errors import ConfigError, FamilyError
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config


@pytest.fixture
def inspect(make_config, write_checkpoint):
    """Inspect a family of a base, which is also the reference, and one expert, each with its own changes."""

    def inspect_pair(base=None, expert=None, tensor_parallel="replicated", **keys):
        write_checkpoint("base", **(base or {}))
        write_checkpoint("helpful", **(expert or {}))
        experts = {"helpful": {"model": "./helpful", "reference": "base", "tensor_parallel": tensor_parallel}}
        return inspect_family(make_config(references=None, experts=experts, **keys))

    return inspect_pair


def test_equal_members_share_every_token_and_no_padding(inspect):
    report = inspect()
    assert report.vocabulary.size == 32
    assert report.vocabulary.shared == ((0, 22),)
    assert report.warnings == ()
    assert report.end_ids == (21,)


def test_sizes_that_are_padded_differently_share_what_is_real(inspect):
    report = inspect({"vocab_size": 40}, {"vocab_size": 24})
    assert (report.vocabulary.size, report.vocabulary.shared) == (40, ((0, 22),))
    assert report.warnings == ()


def test_an_ordinary_id_that_differs_is_refused_with_the_first_few(inspect, words):
    changed = [*words[:10], *(f"x{index}" for index in range(10, 20))]
    with pytest.raises(FamilyError) as caught:
        inspect(expert={"words": changed})
    assert "10 ids (10 is 'w10' in base, 'x10' in helpful; 11 is 'w11' in base" in str(caught.value)
    assert "; and 5 more)" in str(caught.value)


def test_an_ordinary_id_that_a_member_lacks_is_refused(inspect, words):
    with pytest.raises(FamilyError, match=r"21 is 'extra' in base, nothing in helpful"):
        inspect({"words": [*words, "more", "extra"]}, {"words": [*words, "more"], "vocab_size": 21})


def test_special_tokens_that_differ_are_masked_with_a_warning(inspect, special):
    report = inspect({"special": [*special, "<a>", "<c>"]}, {"special": [*special, "<b>", "<c>"]})
    assert report.vocabulary.shared == ((0, 22), (23, 24))
    assert any("22 is '<a>' in base, '<b>' in helpful" in warning for warning in report.warnings)


def test_an_ordinary_token_that_is_special_to_a_member_is_masked(inspect, words):
    report = inspect(expert={"words": words[:-1], "special": ["<bos>", "<x>", "<eos>"]})
    assert report.vocabulary.shared == ((0, 19), (21, 22))
    assert any("19 is 'w19' in base, '<bos>' in helpful" in warning for warning in report.warnings)


def test_tokens_that_only_the_expert_has_are_masked_with_a_warning(inspect, special):
    report = inspect(expert={"special": [*special, "<tool>"]})
    assert report.vocabulary.shared == ((0, 22),)
    assert any("22 is nothing in base, '<tool>' in helpful" in warning for warning in report.warnings)


def test_an_end_of_text_that_is_not_shared_is_warned_about(inspect):
    report = inspect(expert={"special": ["<bos>", "<end>"]})
    assert any("'helpful' ends texts with 21 ('<end>')" in warning for warning in report.warnings)
    assert report.end_ids == ()


def test_every_members_end_of_text_is_collected(inspect, special):
    turns = [*special, "<turn>"]
    report = inspect({"special": turns}, {"special": turns, "eos_token_id": [21, 22]})
    assert report.end_ids == (21, 22)


def test_soft_caps_that_differ_are_warned_about(inspect):
    report = inspect({"model_type": "gemma2", "head_dim": 8})
    assert report.members[0].final_logit_softcapping == 30.0
    assert any("cap their logits differently" in warning for warning in report.warnings)
    assert not inspect({"model_type": "gemma2"}, {"model_type": "gemma2"}).warnings


NAMED = {
    "default": "\n{% set name = 'x' %}\n{% for m in messages %}\n  {{ m['content'] }}{{ name }}\n{% endfor %}\n  ",
    "tool_use": "{% macro show(t) %}{{ t['type'] }}{% endmacro %}{% for t in tools %}{{ show(t) }}{% endfor %}\n",
    "rag": "{{ documents }}",
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize("kept_as", ["files", "list"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["chat", "tools"])
def test_of_several_chat_templates_the_one_is_taken_that_transformers_takes(
    inspect, tmp_path, kept_as, tools
):
    report = inspect({"chat_template": NAMED}, {"chat_template": NAMED})
    assert report.warnings == ()
    if kept_as == "list":
        for name in ("base", "helpful"):
            shutil.rmtree(tmp_path / name / "additional_chat_templates")
            (tmp_path / name / "chat_template.jinja").unlink()
            file = tmp_path / name / "tokenizer_config.json"
            listed = [{"name": key, "template": text} for key, text in NAMED.items()]
            file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": listed}))
        report = inspect_family(load_config(tmp_path / "family.yaml"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    expected = tokenizer.apply_chat_template(chat, tools=tools, tokenize=False)
    for name in ("base", "helpful"):
        template = report.chat_templates[name]
        assert tokenizer.apply_chat_template(chat, tools, chat_template=template, tokenize=False) == expected


def test_several_chat_templates_without_a_usual_one_are_none(inspect):
    report = inspect({"chat_template": {"rag": "{{ documents }}", "tool_use": "{{ tools }}"}})
    assert list(report.chat_templates) == ["helpful"]
    assert any("no chat template" in warning for warning in report.warnings)


def test_the_shortest_context_and_a_missing_template_are_warned_about(inspect):
    report = inspect({"chat_template": None}, {"max_position_embeddings": 48})
    assert any("'helpful' reads at most 48 tokens" in warning for warning in report.warnings)
    assert any("no chat template (members with one: helpful)" in warning for warning in report.warnings)
    assert report.chat_templates == {"helpful": "{{ messages }}"}


SHAPES = [
    ("llama", {"tie_word_embeddings": False}, 8),
    ("llama", {"tie_word_embeddings": True}, 8),
    ("llama", {"head_dim": 16}, 16),
    ("qwen2", {}, 8),
    ("qwen3", {"head_dim": 16}, 16),
    ("gemma2", {"head_dim": 24}, 24),
    ("gpt_neox", {"num_key_value_heads": None}, 8),
    ("gpt2", {"num_key_value_heads": None}, 8),
]


@pytest.mark.parametrize(("model_type", "changes", "head_dim"), SHAPES)
def test_sizes_are_those_of_the_model_when_it_is_built(inspect, shape, model_type, changes, head_dim):
    report = inspect({"model_type": model_type, **changes}).members[0]
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**(shape | changes)))
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    cache = model(torch.zeros((1, 3), dtype=torch.long), use_cache=True).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert report.kv_bytes_per_token == numbers // 3 * 4
    assert cache.layers[0].keys.shape[-1] == head_dim
    assert cache.layers[0].keys.shape[1] == report.kv_heads


def test_latent_attention_caches_one_row_a_layer(inspect):
    latent = {"model_type": "deepseek_v2", "kv_lora_rank": 16, "qk_rope_head_dim": 8}
    member = inspect(latent).members[0]
    assert (member.kv_bytes_per_token, member.kv_heads) == (2 * (16 + 8) * 4, 1)


def test_members_may_differ_in_architecture_and_shape(inspect):
    report = inspect(
        {"model_type": "qwen2", "num_hidden_layers": 3, "dtype": "bfloat16"}, {"model_type": "llama"}
    )
    assert [member.architecture for member in report.members] == ["Qwen2ForCausalLM", "LlamaForCausalLM"]
    assert [member.dtype for member in report.members] == ["bfloat16", "float32"]


def test_sizes_follow_the_dtype(inspect):
    member = inspect(expert={"dtype": "bfloat16"}).members[1]
    assert member.weight_bytes() == 2 * member.parameters == member.weight_bytes("float32") // 2
    assert member.kv_bytes(10, "float32") == 2 * member.kv_bytes(10) == 20 * member.kv_bytes_per_token
    assert member.kv_bytes(10, "fp8_e4m3") == member.kv_bytes(5)
    with pytest.raises(ConfigError, match="size of dtype 'int3'"):
        member.weight_bytes("int3")


def test_heads_of_sharded_members_have_to_spread_evenly_over_gpus(inspect):
    report = inspect(expert={"num_attention_heads": 2}, tensor_parallel="sharded")
    report.require_divisible(2)
    with pytest.raises(
        FamilyError,
        match=r"tensor_parallel_size 4 does not divide the 2 attention heads of 'helpful'.*replicate",
    ):
        report.require_divisible(4)


def test_key_value_heads_of_sharded_members_are_divided_or_copied_evenly(inspect):
    report = inspect({"hidden_size": 48, "num_attention_heads": 12, "num_key_value_heads": 3, "head_dim": 4})
    report.require_divisible(3)
    report.require_divisible(6)
    with pytest.raises(
        FamilyError, match="tensor_parallel_size 4 does not divide the 3 key/value heads of 'base'"
    ):
        report.require_divisible(4)


def test_heads_of_replicated_members_need_not_spread(inspect):
    report = inspect(expert={"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3})
    report.require_divisible(2)
    member = report.members[1]
    assert (member.weight_share(2), member.kv_share(2)) == (1, 1)
    assert report.members[0].weight_share(2) == 0.5


def test_a_draft_of_its_own_is_sharded(inspect, write_checkpoint):
    write_checkpoint("draft", hidden_size=48, num_attention_heads=3, num_key_value_heads=3)
    report = inspect(speculative={"draft": "./draft"})
    with pytest.raises(FamilyError, match=r"3 attention heads of 'draft'.*a draft is sharded as the base is"):
        report.require_divisible(2)


def test_a_member_that_drafts_is_not_loaded_again(inspect):
    report = inspect(speculative={"draft": "helpful"})
    assert report.draft is None
    assert report.loaded == report.members


def test_a_draft_of_its_own_has_to_read_the_same_tokens(inspect, write_checkpoint, words, special):
    write_checkpoint("draft", special=[*special, "<x>"], num_hidden_layers=1)
    assert inspect(speculative={"draft": "./draft"}).vocabulary.shared == ((0, 22),)
    write_checkpoint("draft", words=reversed(words))
    with pytest.raises(FamilyError, match="'draft' does not share"):
        inspect(speculative={"draft": "./draft"})


def test_a_missing_directory_and_one_without_a_checkpoint_are_refused(make_config, tmp_path):
    with pytest.raises(FamilyError, match=r"member 'base' .*there is no such directory"):
        inspect_family(make_config())
    (tmp_path / "base").mkdir()
    with pytest.raises(FamilyError, match=r"holds no config.json"):
        inspect_family(make_config())


def test_a_checkpoint_without_a_tokenizer_or_with_a_broken_config_is_refused(make_config, write_checkpoint):
    folder = write_checkpoint("base")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(FamilyError, match="member 'base'"):
        inspect_family(make_config())
    (folder / "config.json").write_text("{")
    with pytest.raises(FamilyError, match="cannot be read"):
        inspect_family(make_config())


def test_an_encoder_decoder_is_refused(make_config, tmp_path):
    T5Config(num_layers=1, d_model=8).save_pretrained(tmp_path / "base")
    with pytest.raises(FamilyError, match="encoder-decoder"):
        inspect_family(make_config())


def test_a_model_that_generates_no_text_is_refused(make_config, tmp_path):
    CONFIG_MAPPING["vit"]().save_pretrained(tmp_path / "base")
    with pytest.raises(FamilyError, match="'vit' is not a causal language model"):
        inspect_family(make_config())


def test_a_checkpoint_with_code_of_its_own_is_refused(make_config, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    code = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": code}))
    (folder / "mine.py").write_text("raise SystemExit('code from a checkpoint was run')")
    with pytest.raises(FamilyError, match="needs code from its repository, which is never run"):
        inspect_family(make_config())


def test_tokens_without_a_row_are_told_by_member(inspect, special):
    turns = [*special, "<pad>"]
    report = inspect({"special": turns, "vocab_size": 22}, {"special": turns, "vocab_size": 22})
    assert report.vocabulary.shared == ((0, 22),)
    (warning,) = report.warnings
    assert (
        "without a row in 'base', 'helpful': 22 ('<pad>'); prompts that contain them are refused" in warning
    )
    assert not inspect({"special": turns, "vocab_size": 23}, {"special": turns, "vocab_size": 24}).warnings
