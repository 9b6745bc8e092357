"""Which template each member reads."""

import pytest

from eft_server.errors import ConfigError
from eft_server.family.file import ServerConfig
from eft_server.family.load import load_config
from eft_server.family.templates import PLAIN, family_voices, member_templates

OWN = {"helpful": "H {{ messages }}", "harmless": "N {{ messages }}"}


def config(**templates):
    """A family whose members are given these templates."""
    members = {name: {"model": f"./{name}"} for name in ("base", "small", "helpful", "harmless")}
    for name, template in templates.items():
        members[name]["template"] = template
    return ServerConfig.model_validate(
        {
            "name": "fam",
            "base": members["base"],
            "references": {"small": members["small"]},
            "experts": {"helpful": members["helpful"], "harmless": members["harmless"]},
        }
    )


def texts(own, **templates):
    return {name: t.text for name, t in member_templates(config(**templates).family, own).items()}


def test_a_base_without_a_template_reads_plain_text_beside_tuned_experts():
    """The pattern of Llama-3.1 and its Instruct models."""
    assert texts(OWN) == {"base": PLAIN, "small": PLAIN} | OWN


def test_a_base_that_knows_chat_tokens_reads_what_the_expert_reads():
    """The pattern of Qwen2.5, whose base models bring a chat template with another system prompt."""
    own = OWN | {"base": "B", "small": "S"}
    assert texts(own) == OWN | {"base": OWN["helpful"], "small": OWN["helpful"]}


def test_an_expert_without_a_template_reads_the_bases():
    assert texts({"base": "B", "small": "S"}) == {"base": "B", "small": "S", "helpful": "B", "harmless": "B"}


def test_without_any_template_everybody_reads_plain_text():
    assert set(texts({}).values()) == {PLAIN}


def test_the_family_file_decides(tmp_path):
    (tmp_path / "chat.jinja").write_text("J {{ messages }}")
    chosen = texts(
        OWN | {"base": "B"},
        base="own",
        small="same as harmless",
        helpful="plain",
        harmless=str(tmp_path / "chat.jinja"),
    )
    assert chosen == {
        "base": "B",
        "small": "J {{ messages }}",
        "helpful": PLAIN,
        "harmless": "J {{ messages }}",
    }


def test_templates_in_a_file_count_from_its_folder(tmp_path, write_family, write_checkpoint):
    (tmp_path / "chat.jinja").write_text("J")
    path = write_family(base={"model": "./base", "template": "chat.jinja"})
    assert member_templates(load_config(path).family, {})["base"].text == "J"


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ({"small": "same as base", "base": "same as small"}, "in a cycle"),
        ({"base": "own"}, "has none; use plain"),
        ({"helpful": "same as helpful"}, "in a cycle"),
    ],
)
def test_templates_that_do_not_exist_are_refused(templates, message):
    with pytest.raises(ConfigError, match=message):
        member_templates(config(**templates).family, OWN)


@pytest.mark.parametrize(
    ("template", "message"),
    [("same as nobody", "'nobody' is not a member; known: base, small"), ("chta.jinja", "is not a file")],
)
def test_a_family_file_that_names_no_template_is_refused_with_its_line(write_family, template, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write_family(base={"model": "./base", "template": template}))
    assert "base.template" in str(caught.value)


def test_members_that_read_the_same_share_a_voice(tmp_path, make_config, write_checkpoint):
    for name in ("base", "small", "harmless"):
        write_checkpoint(name, chat_template=None)
    write_checkpoint("helpful", chat_template="{{ messages[0]['content'] }}")
    family = make_config().family
    voices = family_voices(
        family, member_templates(family, {"helpful": "{{ messages[0]['content'] }}"}), {"harmless"}
    )
    assert [[family.names[place] for place in voice.members] for voice in voices] == [
        ["base", "small"],
        ["helpful"],
        ["harmless"],
    ]
    text, ids = voices[0].read([{"role": "user", "content": "Hi"}], {})
    assert text == "# Query:\nHi\n\n# Response:\n"
    assert ids == voices[0].tokenizer(text)["input_ids"]
    assert voices[1].read([{"role": "user", "content": "Hi"}], {})[0] == "Hi"
