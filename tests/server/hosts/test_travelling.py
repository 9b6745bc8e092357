"""The family inside a model's config, and a host's names for it."""

import pytest

from eft_server.errors import ConfigError
from eft_server.family.load import load_config
from eft_server.hosts.travelling import family_in, renamed, written


def test_a_family_comes_back_as_it_was_written_but_for_where_to_listen() -> None:
    config = load_config(
        "demo", ["server.port=9000", "server.max_n=3", "aliases.half={weights: {helpful: 0.5}}"]
    )
    back = family_in(written(config))
    assert back.server.port != 9000
    assert back.server.max_n == 3
    assert back.model_copy(update={"server": config.server}) == config


def test_what_is_no_family_is_refused_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"hf_overrides\.eft_family: experts: Field required"):
        family_in({"name": "demo", "base": "large"})
    with pytest.raises(ConfigError, match=r"hf_overrides\.eft_family"):
        family_in(None)


def test_a_hosts_first_name_is_the_familys_and_the_others_are_aliases_of_its_defaults() -> None:
    config = renamed(load_config("demo"), ["prod", "prod-v2"])
    assert config.name == "prod"
    assert config.aliases["prod-v2"].weights == config.defaults.weights
    assert "demo-helpful" in config.aliases


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Prod/V2"], "--served-model-name Prod/V2: name: String should match"),
        (["demo-helpful"], "'demo-helpful' is already taken"),
        (["prod", "demo-helpful"], "--served-model-name demo-helpful: the family has an alias"),
        (["base"], "'base' is reserved"),
    ],
)
def test_a_name_that_cannot_be_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        renamed(load_config("demo"), names)
