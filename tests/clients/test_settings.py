"""Settings and sweeps, from text and from files."""

import pytest

from eft_client.settings import DEFAULT_URL, Setting, SettingError, parse_setting, read_settings, sweep


def test_a_setting_is_read_from_one_line():
    text = "careful=demo@http://localhost:9/v1/ helpful=0.3 harmless=0.7 scale=1.2 filter=expert:0.9"
    assert parse_setting(text) == Setting(
        name="careful",
        model="demo",
        url="http://localhost:9/v1",
        eft={
            "weights": {"helpful": 0.3, "harmless": 0.7},
            "scale": 1.2,
            "filter": {"kind": "expert", "top_p": 0.9},
        },
    )


def test_a_plain_model_name_is_its_own_name_and_sends_no_eft_field():
    setting = parse_setting("demo/base")
    assert (setting.name, setting.model, setting.url, setting.body) == (
        "demo/base",
        "demo/base",
        DEFAULT_URL,
        {},
    )


def test_weights_are_part_of_the_name_of_what_has_none():
    assert parse_setting("demo helpful=1").name == "demo helpful=1"


@pytest.mark.parametrize(
    ("text", "name", "model", "url"),
    [
        ("demo:a=0.7,b=-3e-1", "demo:a=0.7,b=-3e-1", "demo:a=0.7,b=-3e-1", DEFAULT_URL),
        ("demo:filter=expert:0.9@http://a:9/v1", "demo:filter=expert:0.9", "demo:filter=expert:0.9", "http://a:9/v1"),
        ("mild=demo:helpful=0.7", "mild", "demo:helpful=0.7", DEFAULT_URL),
        ("llama:8b", "llama:8b", "llama:8b", DEFAULT_URL),
        ("llama:8b=llama:8b-chat", "llama:8b", "llama:8b-chat", DEFAULT_URL),
        ("a:b=demo", "a:b", "demo", DEFAULT_URL),
    ],
)  # fmt: skip
def test_weights_may_be_in_the_models_name(text, name, model, url):
    assert parse_setting(text) == Setting(name=name, model=model, url=url)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty"),
        ("a=demo helpful", "'helpful'"),
        ("a=demo helpful=much", "'much'"),
        ("a=demo helpful=nan", "'nan'"),
        ("a=demo@localhost:9", "'localhost:9'"),
        ("a=demo filter=expert", "''"),
        ("a=demo helpful=1 harmless=0 helpful=0.2", "'helpful' is named twice"),
        ("a=demo scale=1 scale=2", "'scale' is named twice"),
        ("a=demo filter=base:0.5 filter=expert:0.9", "'filter' is named twice"),
    ],
)
def test_what_is_wrong_with_a_setting_is_named(text, named):
    with pytest.raises(SettingError, match=named):
        parse_setting(text)


def test_settings_come_from_a_file_as_objects_or_lines(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "- {name: tuned, model: large, url: 'http://127.0.0.1:8001/v1', api_key_env: TUNED_KEY}\n"
        "- careful=demo harmless=1\n"
        "- {model: demo, weights: {helpful: 1}, amplify: 1.1}\n"
    )
    tuned, careful, plain = read_settings(path)
    assert (tuned.url, tuned.api_key_env, tuned.body) == ("http://127.0.0.1:8001/v1", "TUNED_KEY", {})
    assert careful.eft == {"weights": {"harmless": 1.0}}
    assert (plain.name, plain.eft) == ("demo", {"weights": {"helpful": 1}, "amplify": 1.1})


@pytest.mark.parametrize(
    "content", ["{}", "[]", "- 3", "- {name: a, weight: {}}", "- {weights: {}}", "- {name: 3}", "\t", "- [a]"]
)
def test_a_file_that_holds_anything_else_is_refused(tmp_path, content):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(SettingError, match=r"settings\.yaml"):
        read_settings(path)


@pytest.mark.parametrize(
    "content", ["- {name: a, weights: {helpful: 1, helpful: 0.2}}", "- {helpful: a, helpful: b}"]
)
def test_a_file_that_names_a_key_twice_is_refused_with_the_key(tmp_path, content):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(SettingError, match=r"settings\.yaml: 'helpful' is named twice"):
        read_settings(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingError, match=r"none\.yaml"):
        read_settings(tmp_path / "none.yaml")


def test_a_key_comes_from_the_variable_that_the_setting_names(monkeypatch):
    monkeypatch.setenv("EFT_API_KEY", "ours")
    assert Setting("a").api_key == "ours"
    monkeypatch.setenv("TUNED_KEY", "theirs")
    assert Setting("a", api_key_env="TUNED_KEY").api_key == "theirs"
    with pytest.raises(SettingError, match="NO_SUCH"):
        _ = Setting("a", api_key_env="NO_SUCH").api_key


def test_a_sweep_has_both_ends_and_the_rest_goes_to_the_other():
    points = sweep("helpful=0:1:0.1 harmless=1-helpful", model="demo")
    assert len(points) == 11
    assert points[3].eft == {"weights": {"helpful": 0.3, "harmless": 0.7}}
    assert points[3].sweep == {"helpful": 0.3}
    assert points[3].name == "helpful=0.3 harmless=0.7"
    assert points[-1].eft["weights"] == {"helpful": 1.0, "harmless": 0.0}


def test_several_ranges_make_a_grid_and_scale_is_no_expert():
    points = sweep("helpful=0:1:0.5 scale=1:2:1 harmless=0.25")
    assert len(points) == 6
    assert points[1].eft == {"weights": {"helpful": 0.0, "harmless": 0.25}, "scale": 2.0}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("helpful=1", "no range"),
        ("helpful=0:1", "0:1"),
        ("helpful=1:0:0.1", "1:0:0.1"),
        ("helpful=0:1:0", "0:1:0"),
        ("helpful=0:1:0.001", "200"),
        ("a=0:1:0.05 b=0:1:0.05", "200"),
        ("helpful=0:1:0.5 harmless=1-honest", "honest"),
        ("helpful", "'helpful'"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_named(text, named):
    with pytest.raises(SettingError, match=named):
        sweep(text)


def test_an_expert_that_a_sweep_names_twice_is_refused_by_name() -> None:
    with pytest.raises(SettingError, match="'helpful' is named twice"):
        sweep("helpful=0:1:0.5 harmless=1-helpful helpful=0.3")
