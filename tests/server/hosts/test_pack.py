"""The packed directory: what goes in, what does not, and that it is there as a whole or not at all."""

import json
from pathlib import Path, PurePosixPath

import pytest
import yaml

from eft_client.progress import Progress
from eft_server.errors import ConfigError
from eft_server.family.load import load_config
from eft_server.hosts.pack import Packing, pack, require_free, wanted_files

from ...engine.adapters import write_adapter
from ..hub_cache import add_to_cache


def _write(packing: Packing, target: Path, *, link: bool = False) -> None:
    with Progress() as progress:
        pack(packing, target, progress, link=link)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["config.json", "LICENSE", ".gitattributes", "modeling.py"], ["LICENSE", "config.json"]),
        (["a.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"], ["a.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt"], ["pytorch_model.bin"]),
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors"], ["consolidated.safetensors"]),
        (
            ["original/a.safetensors", "additional_chat_templates/rag.jinja"],
            ["additional_chat_templates/rag.jinja"],
        ),
        (["model-q4.gguf", "tf_model.h5", "onnx/model.onnx"], []),
    ],
)
def test_files_that_nothing_reads_stay_out(names: list[str], wanted: list[str]) -> None:
    assert wanted_files(names) == wanted


def test_the_family_in_it_is_the_same_family_with_paths_of_its_own(family_file: Path, packed: Path) -> None:
    meant, read = load_config(family_file), load_config(packed / "family.yaml")
    assert str(family_file.parent) not in (packed / "family.yaml").read_text()
    assert {m.name: Path(m.source.model) for m in read.family} == {
        name: packed.resolve() / "members" / name for name in meant.family.names
    }
    same = ("name", "defaults", "aliases", "limits", "vllm")
    assert [getattr(read, name) for name in same] == [getattr(meant, name) for name in same]
    for member in read.family:
        assert (Path(member.source.model) / "model.safetensors").is_file()


def test_its_top_is_a_model_that_vllm_refuses_without_the_plugin(packed: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    assert AutoConfig.from_pretrained(packed).architectures == ["EftForCausalLM"]
    assert AutoTokenizer.from_pretrained(packed).chat_template
    assert not list(packed.glob("*.safetensors"))


def test_what_is_linked_takes_no_room_and_what_is_copied_is_apart(
    family_file: Path, packed: Path, tmp_path: Path
) -> None:
    source = family_file.parent / "small" / "model.safetensors"
    assert (packed / "members" / "small" / "model.safetensors").stat().st_ino == source.stat().st_ino
    _write(Packing.of(load_config(family_file), None), tmp_path / "copied")
    copy = tmp_path / "copied" / "members" / "small" / "model.safetensors"
    assert copy.stat().st_ino != source.stat().st_ino
    assert copy.read_bytes() == source.read_bytes()


def test_templates_adapters_drafts_and_keys(family_file: Path, tmp_path: Path) -> None:
    folder = family_file.parent
    write_adapter(tmp_path / "lora", folder / "small", 1, {"q_proj": 2})
    (tmp_path / "keys").write_text("secret\n")
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    config = {
        "name": "mixed",
        "base": {"model": str(folder / "base"), "template": "own.jinja"},
        "references": {"small": str(folder / "small")},
        "experts": {"brief": {"adapter": "./lora"}, "twin": {"model": str(folder / "small")}},
        "speculative": {"draft": str(folder / "helpful"), "tokens": 2},
        "server": {"api_key_file": "keys"},
    }
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(config))
    _write(Packing.of(load_config(tmp_path / "mixed.yaml"), None), tmp_path / "mixed")
    written = yaml.safe_load((tmp_path / "mixed" / "family.yaml").read_text())
    assert written["experts"]["brief"]["adapter"] == "./members/brief"
    assert (tmp_path / "mixed" / "members" / "brief" / "adapter_config.json").is_file()
    assert written["experts"]["twin"]["model"] == "./members/small", "one checkpoint, once"
    assert written["base"]["template"] == "./templates/base.jinja"
    assert written["speculative"]["draft"] == "./draft"
    assert written["server"] == {"api_key_file": str(tmp_path / "keys")}
    assert not any(
        b"secret" in path.read_bytes() for path in (tmp_path / "mixed").rglob("*") if path.is_file()
    )
    assert load_config(tmp_path / "mixed" / "family.yaml").family["brief"].adapter is not None


def test_a_member_from_the_hub_comes_from_its_cache_with_its_origin_noted(
    family_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    add_to_cache(tmp_path / "hub", "org/small", family_file.parent / "small")
    config = load_config(family_file, ["references.small=org/small"])
    packing = Packing.of(config, None)
    assert PurePosixPath("members/small/model.safetensors") in packing.files
    assert "# small: org/small\n" in packing.texts[PurePosixPath("family.yaml")]
    assert "org/small" not in json.dumps(yaml.safe_load(packing.texts[PurePosixPath("family.yaml")]))


def test_a_directory_that_holds_something_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    require_free(tmp_path / "full")
    (tmp_path / "full" / "model.bin").touch()
    with pytest.raises(
        ConfigError, match=r"full: the directory holds model\.bin; name an empty or a new one"
    ):
        require_free(tmp_path / "full")
    with pytest.raises(ConfigError, match="is not a directory"):
        require_free(tmp_path / "full" / "model.bin")
    with pytest.raises(ConfigError, match="there is no directory"):
        require_free(tmp_path / "nowhere" / "deeper")


def test_what_fails_on_the_way_leaves_nothing(family_file: Path, tmp_path: Path) -> None:
    packing = Packing.of(load_config(family_file), None)
    broken = Packing({**packing.files, PurePosixPath("members/gone"): tmp_path / "gone"}, packing.texts)
    object.__setattr__(broken, "files", dict(reversed(broken.files.items())))
    with pytest.raises(FileNotFoundError):
        _write(broken, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_is_filled(family_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _write(Packing.of(load_config(family_file), None), tmp_path / "empty", link=True)
    assert (tmp_path / "empty" / "family.yaml").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]
