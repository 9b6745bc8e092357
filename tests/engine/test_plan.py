"""What is decided, and what is refused in words, before vLLM starts."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm.config import ModelConfig

from eft_server.engine.launcher import plan as plan_module
from eft_server.engine.launcher.parsers import template_variables
from eft_server.engine.launcher.plan import EnginePlan, parse_vllm_args, plan, thread_binding
from eft_server.engine.message import Manifest
from eft_server.errors import ConfigError, FamilyError
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config

from .checkpoints import write_checkpoint
from .small_family import SHARED

Planner = Callable[..., EnginePlan]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    write_checkpoint(folder / "base", 0, max_position_embeddings=400)
    write_checkpoint(folder / "ref", 1, vocab_size=SHARED)
    write_checkpoint(folder / "a", 2, max_position_embeddings=300)
    write_checkpoint(folder / "wide", 3, vocab_size=112)
    write_checkpoint(folder / "sliding", 4, "mistral", sliding_window=24)
    write_checkpoint(folder / "sliding48", 5, "mistral", sliding_window=48)
    return folder


@pytest.fixture
def planned(folder: Path) -> Planner:
    def make(*overrides: str, arguments: tuple[str, ...] = (), experts: str = "{a: ./a}") -> EnginePlan:
        path = folder / "family.yaml"
        path.write_text(f"name: small\nbase: ./base\nreferences: {{ref: ./ref}}\nexperts: {experts}\n")
        config = load_config(path, overrides)
        return plan(config, inspect_family(config), arguments)

    return make


@pytest.fixture
def stated(folder: Path) -> Iterator[None]:
    """What the expert's file says of sampling; the base's says something else."""
    files = {"a": {"temperature": 0.7, "top_k": 20, "max_new_tokens": 9}, "base": {"temperature": 0.3}}
    paths = [folder / name / "generation_config.json" for name in files]
    for path, said in zip(paths, files.values(), strict=True):
        path.write_text(json.dumps(said | {"do_sample": True, "eos_token_id": 2}))
    yield
    for path in paths:
        path.unlink()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), {}),
        (("defaults.sampling=neutral",), {}),
        (("defaults.sampling=base",), {"temperature": 0.3}),
        (("defaults.sampling=a",), {"temperature": 0.7, "top_k": 20}),
        (("vllm.generation_config=auto",), {"temperature": 0.3}),
    ],
)
def test_the_operator_says_how_is_sampled_who_does_not_say(
    planned: Planner, stated: None, overrides: tuple[str, ...], expected: dict[str, Any]
) -> None:
    """As vLLM reads it, where a model has been made of the options."""
    options = planned(*overrides).options
    named = ("model", "generation_config", "override_generation_config")
    model = ModelConfig(**{name: options[name] for name in named if name in options})
    assert model.get_diff_sampling_param() == expected


def test_a_member_that_says_nothing_of_sampling_cannot_be_asked(planned: Planner) -> None:
    with pytest.raises(
        ConfigError, match=r"defaults\.sampling: member 'a' .* has no generation_config\.json"
    ):
        planned("defaults.sampling=a")


def test_sampling_that_is_impossible_is_refused(planned: Planner, folder: Path) -> None:
    path = folder / "a" / "generation_config.json"
    path.write_text(json.dumps({"temperature": -1.0}))
    with pytest.raises(FamilyError, match=r"generation_config\.json of member 'a'.*temperature"):
        planned("defaults.sampling=a")
    path.unlink()


def manifest_of(made: EnginePlan) -> Manifest:
    return Manifest.from_hf(type("Config", (), made.options["hf_overrides"])())


def test_the_manifest_says_what_the_family_is(planned: Planner, folder: Path) -> None:
    manifest = manifest_of(planned())
    assert manifest.architectures == ("LlamaForCausalLM",)
    assert [(member.name, member.model) for member in manifest.members] == [
        ("ref", str(folder / "ref")),
        ("a", str(folder / "a")),
    ]
    assert list(manifest.unshared_ids()) == [93, 94, 95]
    assert manifest.defaults == (1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert manifest.rows == (96, 93, 96)


def test_drafts_are_kept_in_the_dtype_of_the_members_logits(planned: Planner) -> None:
    assert planned().options["hf_overrides"]["head_dtype"] == "float32"


def test_the_context_is_the_shortest_members(planned: Planner) -> None:
    assert planned().options["max_model_len"] == 300
    assert planned("vllm.max_model_len=128").options["max_model_len"] == 128


def test_a_longer_context_is_refused_with_the_member_and_the_limit(planned: Planner) -> None:
    with pytest.raises(ConfigError, match=r"301 is more than member 'a' can read; allowed: up to 300"):
        planned("vllm.max_model_len=301")


def test_options_after_the_dashes_win_over_the_file(planned: Planner) -> None:
    made = planned("vllm.max_num_seqs=4", arguments=("--max-num-seqs", "7", "--no-enforce-eager"))
    assert made.options["max_num_seqs"] == 7
    assert made.options["enforce_eager"] is False


@pytest.mark.parametrize(
    ("overrides", "arguments"),
    [((), ("--generation-config", "auto")), (("vllm.generation_config=auto",), ("--max-num-seqs", "7"))],
)
def test_options_say_how_is_sampled_where_the_defaults_do_not(
    planned: Planner, overrides: tuple[str, ...], arguments: tuple[str, ...]
) -> None:
    assert planned(*overrides, arguments=arguments).options["generation_config"] == "auto"


def test_options_and_defaults_cannot_both_say_how_is_sampled(planned: Planner) -> None:
    with pytest.raises(ConfigError, match=r"repeats defaults\.sampling"):
        planned("defaults.sampling=base", arguments=("--generation-config", "auto"))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--no-such-option", "1"), "no-such-option"),
        (("--max-num-seqs", "many"), "max-num-seqs"),
        (("--trust-remote-code",), "code from checkpoints is never run"),
        (("--enable-lora",), "experts.<name>.adapter"),
        (("--pipeline-parallel-size", "2"), "tensor_parallel_size"),
        (("--data-parallel-rank", "1"), "data_parallel_size says how many replicas"),
        (("--distributed-executor-backend", "ray"), "needs GPUs"),
        (("--enable-expert-parallel",), "sharded or replicated as its member is"),
        (("--model", "other"), "base is the model"),
    ],
)
def test_vllm_options_that_cannot_work_are_refused_in_words(
    planned: Planner, arguments: tuple[str, ...], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        planned(arguments=arguments)


def test_heads_that_the_gpus_do_not_divide_are_refused(planned: Planner) -> None:
    with pytest.raises(FamilyError, match="3 does not divide the 2 attention heads of 'base'"):
        planned("vllm.tensor_parallel_size=3")


def test_members_are_whole_on_every_rank_unless_they_ask_to_be_sharded(planned: Planner) -> None:
    experts = "{a: {model: ./a, tensor_parallel: sharded}}"
    manifest = manifest_of(planned("vllm.tensor_parallel_size=2", experts=experts))
    assert [(member.name, member.sharded) for member in manifest.members] == [("ref", False), ("a", True)]


def test_mixtures_of_experts_are_refused_where_their_experts_would_have_to_spread(
    planned: Planner, folder: Path
) -> None:
    write_checkpoint(folder / "mixture", 6, "mixtral", num_local_experts=2, num_experts_per_tok=1)
    for family in ({"experts": "{m: ./mixture}"}, {}):
        base = [] if family else ["base=./mixture"]
        with pytest.raises(
            ConfigError, match=r"data_parallel_size must be 1 if a member is a mixture .*\((m|base)\)"
        ):
            planned(*base, "vllm.data_parallel_size=2", **family)
    with pytest.raises(
        ConfigError, match="'m' is a mixture of experts, which can be sharded only if the base"
    ):
        planned(experts="{m: {model: ./mixture, tensor_parallel: sharded}}")


@pytest.mark.parametrize(
    ("cores", "ranks", "binding"),
    [
        (range(2), 1, "0,1"),
        (range(64), 1, None),
        (range(2), 2, "0|1"),
        (range(8), 2, "0,1,2,3|4,5,6,7"),
        (range(5), 2, "0,1|2,3,4"),
        (range(2), 4, "0|1|0|1"),
    ],
)
def test_ranks_share_out_the_cores_of_a_machine_with_one_memory_node(
    monkeypatch: pytest.MonkeyPatch, cores: range, ranks: int, binding: str | None
) -> None:
    monkeypatch.setattr("vllm.utils.cpu_resource_utils.get_visible_memory_node", lambda: [0])
    assert thread_binding(cores, ranks) == binding


def test_a_member_that_drafts_is_named_in_the_manifest_and_not_loaded(planned: Planner, folder: Path) -> None:
    made = planned("speculative={draft: a, tokens: 2}")
    assert made.options["hf_overrides"]["eft"]["draft"] == "a"
    assert made.options["speculative_config"] == {
        "method": "draft_model",
        "model": str(folder / "base"),
        "num_speculative_tokens": 2,
    }
    assert "speculative_config" not in planned().options


def test_another_checkpoint_drafts_as_vllm_has_it(planned: Planner, folder: Path) -> None:
    made = planned(f"speculative={{draft: {folder / 'a'}}}")
    assert made.options["hf_overrides"]["eft"]["draft"] is None
    assert made.options["speculative_config"]["model"] == str(folder / "a")


def test_the_text_itself_may_draft(planned: Planner) -> None:
    made = planned("speculative={method: ngram, tokens: 3, lookup_max: 5}")
    assert made.options["speculative_config"] == {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 5,
    }


def test_sliding_windows_share_one_kind_of_block(planned: Planner) -> None:
    for experts in ("{s: ./sliding}", "{s: ./sliding, t: ./sliding48}"):
        assert planned(experts=experts).options["disable_hybrid_kv_cache_manager"] is True
    assert "disable_hybrid_kv_cache_manager" not in planned().options


def test_vllm_is_told_of_mixtures_of_experts_that_only_other_members_are(
    planned: Planner, folder: Path
) -> None:
    """It sets up their process groups by the base's config."""
    write_checkpoint(folder / "mixture", 6, "mixtral", num_local_experts=4, num_experts_per_tok=2)
    assert planned(experts="{m: ./mixture}").options["hf_overrides"]["moe_num_experts"] == 4
    assert "moe_num_experts" not in planned().options["hf_overrides"]


def test_code_from_checkpoints_is_never_run(planned: Planner) -> None:
    assert planned().options["trust_remote_code"] is False


def test_text_ends_where_any_member_would_end_it(planned: Planner) -> None:
    assert planned().end_ids == (91,)


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantised by 'fp8'.*the CPU build does not support",
        ),
        ({"architectures": ["NoSuchModel"], "model_type": "llama"}, "vLLM cannot run this checkpoint"),
    ],
)
def test_checkpoints_that_cannot_be_members_are_refused_by_name(
    planned: Planner, folder: Path, edit: dict[str, Any], what: str
) -> None:
    import json
    import shutil

    broken = folder / "broken"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(folder / "a", broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | edit))
    with pytest.raises(FamilyError, match=f"member 'x'.*{what}"):
        planned(experts="{x: ./broken}")


def test_no_arguments_are_no_options() -> None:
    assert parse_vllm_args(()) == {}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("server.tool_parser=hermess", r"server.tool_parser: vLLM has no parser 'hermess'; known: .*hermes"),
        (
            "server.reasoning_parser=r1",
            r"server.reasoning_parser: vLLM has no parser 'r1'; known: .*deepseek_r1",
        ),
        (
            "server.reasoning_parser=deepseek_r1",
            "reasoning_parser 'deepseek_r1': no fit for this family: .*think",
        ),
        ("server.tool_parser=hermes", "the chat template does not mention tools"),
        ("vllm.reasoning_parser=qwen3", "use server.reasoning_parser"),
    ],
)
def test_a_parser_that_cannot_work_is_refused_before_the_engine_starts(
    planned: Planner, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(override)


def test_the_engine_knows_one_backend_for_grammars(planned: Planner) -> None:
    assert planned().options["structured_outputs_config"] == {"backend": "xgrammar", "reasoning_parser": ""}


def test_a_template_says_what_a_request_can_tell_it() -> None:
    template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ tools }}"
    )
    assert template_variables(template) == {"messages", "tools"}
    assert template_variables(None) == frozenset()
    with pytest.raises(ConfigError, match="cannot be read"):
        template_variables("{% if %}")


def test_gpus_are_refused_vllms_older_model_runner(planned: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert planned()
    monkeypatch.setattr(plan_module, "_on_cpu", lambda: False)
    with pytest.raises(ConfigError, match=r"VLLM_USE_V2_MODEL_RUNNER=0: GPUs need .* unset it"):
        planned()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), "eft_server.engine.core.cpu_executor.CPUExecutor"),
        (("vllm.distributed_executor_backend=uni",), "eft_server.engine.core.cpu_executor.CPUExecutor"),
        (("vllm.data_parallel_size=2",), "eft_server.engine.core.cpu_executor.CPUExecutor"),
        (("vllm.distributed_executor_backend=mp",), "mp"),
        (("vllm.tensor_parallel_size=2",), None),
        (("vllm.numa_bind=true",), None),
    ],
)
def test_one_rank_on_a_cpu_runs_in_its_engines_core(
    planned: Planner, overrides: tuple[str, ...], expected: str | None
) -> None:
    assert planned(*overrides).options.get("distributed_executor_backend") == expected


def test_an_engine_inside_the_program_has_vllms_executor(
    planned: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    assert "distributed_executor_backend" not in planned().options
