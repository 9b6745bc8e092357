"""The family file: what it accepts, what it fills in, and where its errors point."""

from pathlib import Path

import pytest
import yaml

from eft_server.errors import ConfigError
from eft_server.family.file import ServerConfig
from eft_server.family.load import load_config


def refusal(family: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(family, overrides)
    return str(caught.value)


def test_members_come_in_file_order_with_the_base_first(make_config):
    config = make_config(
        references={"tiny": "./t", "small": "./s"},
        experts={"b": {"model": "./b", "reference": "small"}, "a": {"model": "./a", "reference": "tiny"}},
    )
    assert config.family.names == ("base", "tiny", "small", "b", "a")
    assert [config.family[name].checkpoint.model.rsplit("/", 1)[1] for name in config.family.names] == [
        "base",
        "t",
        "s",
        "b",
        "a",
    ]


def test_an_experts_reference_is_the_only_one_unless_it_says_base(make_config):
    config = make_config(experts={"a": "./a", "b": {"model": "./b", "reference": "base"}})
    assert (config.family.reference_of("a"), config.family.reference_of("b")) == ("small", "base")


def test_an_expert_must_choose_among_several_references(write_family):
    path = write_family(references={"s1": "./s", "s2": "./t"})
    assert "experts.helpful: needs a reference; known: s1, s2, base" in refusal(path)


def test_an_unknown_reference_is_refused_at_its_line(write_family):
    path = write_family(experts={"a": {"model": "./a", "reference": "big"}})
    line = path.read_text().splitlines().index("    reference: big") + 1
    assert f"{path}:{line}: experts.a.reference: 'big' is not a reference; known: small, base" in refusal(
        path
    )


def test_a_reference_that_nobody_uses_is_refused(write_family):
    path = write_family(experts={"a": {"model": "./a", "reference": "base"}})
    assert "references.small: no expert has this reference" in refusal(path)


def test_defaults_share_one_among_the_experts(make_config):
    assert make_config().defaults.weights == {"helpful": 0.5, "harmless": 0.5}
    assert make_config(experts={"only": "./x"}).defaults.weights == {"only": 1.0}


def test_given_weights_leave_the_other_experts_at_zero(make_config):
    config = make_config(defaults={"weights": {"harmless": 0.3}}, aliases={"al": {"weights": {"helpful": 1}}})
    assert config.defaults.weights == {"helpful": 0.0, "harmless": 0.3}
    assert config.aliases["al"].weights == {"helpful": 1.0, "harmless": 0.0}


def test_an_alias_takes_from_the_defaults_what_it_leaves_out(make_config):
    config = make_config(
        defaults={"scale": 0.5}, aliases={"a": {"weights": {"helpful": 1}}, "b": {"scale": 2}}
    )
    assert config.aliases["a"].scale == 0.5
    assert config.aliases["b"].weights == config.defaults.weights


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"defaults": {"weights": {"helpful": 3}}},
            "defaults.weights.helpful: 3.0 is out of bounds; allowed: 0 to 2",
        ),
        (
            {"aliases": {"a": {"weights": {"helpful": -1}}}},
            "aliases.a.weights.helpful: -1.0 is out of bounds",
        ),
        ({"defaults": {"scale": 2.5}}, "defaults.scale: 2.5 is out of bounds; allowed: 0 to 2"),
        ({"defaults": {"weights": {"helpful": 2, "harmless": 1}}}, "|weights| is 3.0; allowed: up to 2"),
        ({"defaults": {"weights": {"rude": 1}}}, "defaults.weights.rude: 'rude' is not an expert"),
        ({"limits": {"weights": {"rude": {"min": 0}}}}, "limits.weights.rude: 'rude' is not an expert"),
        ({"limits": {"weight": {"min": 2, "max": 1}}}, "limits.weight: min 2 is above max 1"),
        ({"limits": {"total": float("inf")}}, "limits.total"),
        (
            {"defaults": {"sampling": "polite"}},
            "defaults.sampling: 'polite' is not one of neutral, base, small",
        ),
        (
            {"defaults": {"sampling": "base"}, "vllm": {"generation_config": "auto"}},
            "vllm.generation_config: repeats defaults.sampling",
        ),
        ({"aliases": {"a": {"sampling": "base"}}}, "aliases.a.sampling: unknown key"),
        ({"limits": {"total": 1e308}}, "limits.total"),
        ({"defaults": {"scale": True}}, "defaults.scale: Input should be a valid number, not true"),
        ({"defaults": {"scale": "1"}}, "defaults.scale: Input should be a valid number, not '1'"),
        ({"defaults": {"scale": 10**3000}}, "defaults.scale"),
        ({"experts": {}}, "experts"),
        ({"experts": {f"e{index}": "./e" for index in range(33)}}, "experts"),
        ({"experts": None}, "experts: this key is required"),
        ({"base": ""}, "base"),
        ({"base": "x" * 2000}, "base.model"),
        ({"base": "a/b/c"}, "base.model: 'a/b/c' is neither a directory nor a hub id"),
        ({"description": "x" * 3000}, "description"),
        ({"server": {"port": 70000}}, "server.port"),
        ({"server": {"port": True}}, "server.port"),
        ({"server": {"prot": 1}}, "server.prot: unknown key; known here: host, port"),
        (
            {"experts": {"a": {"model": "./a", "refrence": "small"}}},
            "experts.a.refrence: unknown key; known here: model",
        ),
        (
            {"speculative": {"draft": "helpful", "token": 3}},
            "speculative.token: unknown key; known here: method, draft, tokens",
        ),
        ({"speculative": {"draft": "helpful", "tokens": 17}}, "speculative.tokens"),
        ({"speculative": {"tokens": 2}}, "speculative: needs draft"),
        (
            {"speculative": {"draft": "helpful", "method": "ngram"}},
            "speculative: method ngram needs no draft",
        ),
        ({"speculative": {"draft": "helpful", "lookup_min": 2}}, "belong to method ngram"),
        (
            {"speculative": {"method": "ngram", "lookup_min": 5, "lookup_max": 4}},
            "lookup_min 5 is above lookup_max 4",
        ),
        (
            {"vllm": {"trust_remote_code": True}},
            "vllm.trust_remote_code: 'trust_remote_code' cannot be set here",
        ),
        ({"vllm": {"worker_cls": "x"}}, "vllm.worker_cls"),
        ({"vllm": {"scheduler_cls": "x"}}, "vllm.scheduler_cls: 'scheduler_cls' cannot be set here"),
        (
            {"vllm": {"max_model_length": 64}},
            "has no engine argument 'max_model_length'; near: max_model_len",
        ),
        ({"vllm": {"seeds": 1}, "server": {"max_body_bytes": 1 << 30}}, "max_bytes_under_way × key_share"),
        ({"vllm": {"pipeline_parallel_size": 2}}, "vllm.pipeline_parallel_size: must be 1"),
        (
            {"vllm": {"data_parallel_size": 0}},
            "vllm.data_parallel_size: must be a number of replicas, 1 or more",
        ),
        ({"vllm": {"data_parallel_rank": 1}}, "data_parallel_size says how many replicas"),
        ({"vllm": {"decode_context_parallel_size": 2}}, "keep their whole KV cache"),
        ({"base": {"model": "./base", "tensor_parallel": "replicated"}}, "the base is always sharded"),
        ({"vllm": {"tensor_parallel_size": "two"}}, "vllm.tensor_parallel_size: must be a number of GPUs"),
    ],
)
def test_what_is_wrong_is_refused_by_key(write_family, keys, message):
    assert message in refusal(write_family(**keys))


@pytest.mark.parametrize("name", ["base", "scale", "fam", "small", "Helpful", "1st", "a b", "", "x" * 65])
def test_names_that_clash_or_are_malformed_are_refused(write_family, name):
    assert "aliases" in refusal(write_family(aliases={name: {}}))


def test_names_are_unique_over_references_and_experts(write_family):
    assert "'small' is already taken by references" in refusal(write_family(experts={"small": "./x"}))


def test_a_negative_weight_is_possible_where_the_operator_opens_the_range(make_config):
    limits = {"weights": {"helpful": {"min": -1}}}
    config = make_config(defaults={"weights": {"helpful": -0.5, "harmless": 0.5}}, limits=limits)
    assert config.defaults.weights["helpful"] == -0.5


def test_every_problem_is_told_with_its_line(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("name: f\nbase: ./b\nexperts:\n  a: ./a\nlimits:\n  totl: 1\nserver:\n  port: x\n")
    assert f"{path}:6: limits.totl: unknown key" in refusal(path)
    assert f"{path}:8: server.port" in refusal(path)


def test_directories_count_from_the_family_file(tmp_path, make_config, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir("/")
    config = make_config(base="base", speculative={"draft": "./d"}, server={"api_key_file": "keys.txt"})
    assert config.base.model == str(tmp_path / "base")
    assert config.speculative.draft == str(tmp_path / "d")
    assert config.server.api_key_file == tmp_path / "keys.txt"


def test_what_is_no_directory_is_a_hub_id(make_config):
    config = make_config(base={"model": "org/model-7B", "revision": "v1"}, speculative={"draft": "helpful"})
    assert (config.base.model, config.base.revision) == ("org/model-7B", "v1")
    assert config.speculative.draft == "helpful"


def test_overrides_win_over_the_file(write_family):
    path = write_family(server={"port": 1})
    config = load_config(
        path, ["server.port=9000", "defaults.weights={helpful: 1e-1}", "vllm.max_model_len=64"]
    )
    assert config.server.port == 9000
    assert config.defaults.weights == {"helpful": 0.1, "harmless": 0.0}
    assert config.vllm == {"max_model_len": 64}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("server.port", "write dotted.key=value"),
        ("=1", "write dotted.key=value"),
        ("a..b=1", "write dotted.key=value"),
        (".".join("a" * 40) + "=1", "write dotted.key=value"),
        ("name.revision=x", "--set name.revision: name is a single value; set it as a whole"),
        ("server.port=abc", "--set server.port: server.port: Input should be a valid integer"),
        ("server.port=[", "--set server.port:1: not valid YAML"),
        ("server.host=" + "x" * 5000, "the value is longer"),
    ],
)
def test_a_wrong_override_is_named(write_family, override, message):
    assert message in refusal(write_family(), override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- a", "the top level must be a mapping"),
        ("", "the top level must be a mapping"),
        ("name: a\nname: b", ":2: the key 'name' is given twice"),
        ("name: &a x\nbase: *a", ":2: YAML anchors"),
        ("1: a", ":1: the key '1' must be text"),
        ("? [a]\n: b", "must be text"),
        ("a: " + "[" * 2000, "nested deeper"),
        ("a: " + "9" * 5000, ":1:"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("#" * 300_000, "too large"),
    ],
)
def test_documents_out_of_proportion_are_refused(tmp_path, text, message):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    assert message in refusal(path)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"name: \xff")
    assert "is not UTF-8" in refusal(path)


@pytest.mark.parametrize("family", ["nonesuch", "/nonesuch/f.yaml", "x" * 9000, "\0", "~nobody/x"])
def test_a_missing_family_names_the_bundled_ones(family):
    assert "neither a family file nor a bundled family (demo" in refusal(family)


def test_a_config_is_frozen_and_survives_a_round_trip(make_config):
    config = make_config(server={"api_key_file": "k"}, vllm={"dtype": "float32"})
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"
    assert ServerConfig.model_validate(config.model_dump()) == config


def test_yaml_keeps_what_it_was_given(write_family):
    path = write_family(vllm={"compilation_config": {"mode": 0, "sizes": [1, 2]}})
    assert load_config(path).vllm == yaml.safe_load(path.read_text())["vllm"]


def test_a_revision_can_be_set_for_members_given_by_their_checkpoint_alone(write_family):
    path = write_family(base="org/base", references={"small": "org/small"})
    config = load_config(path, ["references.small.revision=v1", "base.revision=v2"], revision="v3")
    assert (config.base.revision, config.base.model) == ("v3", "org/base")
    assert config.references["small"].revision == "v1"
    assert config.experts["helpful"].revision is None


def test_a_revision_that_reads_as_a_number_stays_text(write_family):
    assert load_config(write_family(base="org/base"), revision="1e5").base.revision == "1e5"


def test_a_revision_of_a_directory_is_refused(write_family):
    with pytest.raises(ConfigError, match=r"base\.revision: './base' is a directory and has no revisions"):
        load_config(write_family(), revision="v1")
    with pytest.raises(ConfigError, match=r"experts\.helpful\.revision: './h' is a directory"):
        load_config(write_family(experts={"helpful": {"model": "./h", "revision": "v1"}}))


@pytest.mark.parametrize(
    "speculative",
    [{"draft": "helpful"}, {"method": "ngram"}, {"method": "ngram", "lookup_min": 6}],
)
def test_what_has_been_validated_can_be_validated_again(make_config, speculative):
    """Options of the command line are merged into a validated family."""
    config = make_config(speculative=speculative)
    assert ServerConfig.model_validate(config.model_dump()) == config
