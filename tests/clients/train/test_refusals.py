"""What cannot be learnt or served is refused by name, before anything is written."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig
from transformers import AutoConfig

from eft_client.progress import Progress
from eft_server.errors import FamilyError
from eft_train import checkpoints, phases, refusals, run
from eft_train.data.reading import DataSource
from eft_train.errors import TrainingError
from eft_train.measuring import Point
from eft_train.preparation import prepare

from ...engine.adapters import write_adapter
from ...engine.checkpoints import write_checkpoint
from .tiny import TEMPLATE, pairs, plan_of, trained, write_base, write_rows

LETTERS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (["dpo.max_length=17"], {}, r"all 16 prompts fill dpo.max_length \(17 tokens\), .* --set dpo.max_length="),
        (["lora.targets=nothing"], {}, r"lora.targets: nothing: .*not found"),
        (["lora.targets=[nothing]"], {}, r"lora.targets: nothing: .*not found"),
        (["lora.targets=[embed_tokens]"], {}, r"could not be served: member 'expert' .*lora_embedding"),
        (["lora.targets=[lm_head]"], {}, r"could not be served: .*adapts 'lm_head', an embedding or the output head"),
        ([], {"checkpoint_every": 1, "max_examples": None}, r"would leave 36 checkpoints, and a family file names"),
        ([], {"held_out": 1.0}, r"--held-out 1: is neither a file nor a share"),
        ([], {"held_out": float("nan")}, r"--held-out nan: "),
        ([], {"held_out": 0.999}, r"every prompt is held out"),
        ([], {"device": "tpu"}, r"--device 'tpu': expected auto, cpu, cuda or cuda:NUMBER"),
        ([], {"device": "cuda"}, r"--device cuda: there is no such device here; expected cpu"),
        ([], {"dtype": "float16"}, r"--dtype 'float16': expected auto, float32, bfloat16"),
        ([], {"revision": "main"}, r"--revision main: .* is a directory and has no revisions"),
        ([], {"held_out": DataSource("nowhere.jsonl")}, r"nowhere.jsonl: No such file"),
    ],
)  # fmt: skip
def test_a_wrong_number_or_target_is_named(
    settings: list[str], options: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", pairs(45 if "checkpoint_every" in options else 20))
    one = ["dpo.batch=1", "dpo.accumulation=1"] if "checkpoint_every" in options else []
    with pytest.raises(TrainingError, match=message):
        trained("dpo", base, data, tmp_path / "out", *one, *settings, **options)
    assert not (tmp_path / "out").exists()


def _refused(
    base: Path, tmp_path: Path, recipe: str = "sft", rows: list[dict[str, Any]] = LETTERS, **options: Any
) -> str:
    data = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises((TrainingError, FamilyError)) as caught:
        trained(recipe, base, data, tmp_path / "out", **{"held_out": 0.0} | options)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_a_model_beside_an_adapter_is_no_reference(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "both")
    (tmp_path / "both" / "adapter_config.json").write_text("{}")
    assert "is an adapter itself (adapter_config.json)" in _refused(tmp_path / "both", tmp_path)


def test_a_folder_that_cannot_be_made_is_named(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data, out = write_rows(tmp_path / "rows.jsonl", LETTERS), tmp_path / "file" / "out"
    with pytest.raises(TrainingError, match=r"--out .*/file/out: cannot be made: Not a directory"):
        trained("sft", base, data, out)


def test_held_out_prompts_that_fill_the_length_are_not_all_that_is_measured(
    base: Path, tmp_path: Path
) -> None:
    long = {"prompt": "a" * 100, "completion": "b"}
    apart = write_rows(tmp_path / "apart.jsonl", [long])
    data = write_rows(tmp_path / "rows.jsonl", LETTERS)
    plan = plan_of("sft", base, data, tmp_path / "out", "sft.max_length=32", held_out=DataSource(str(apart)))
    with Progress() as progress:
        prepared = prepare(plan, progress)
    assert [example.id for example in prepared.measured] == ["row-1", "row-2"]
    assert not prepared.on_held_out


def test_an_adapter_is_no_reference(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", base, 1, {"q_proj": 2})
    assert (
        "is an adapter itself (adapter_config.json); an expert is one adapter on its reference"
        in _refused(tmp_path / "adapter", tmp_path)
    )


def test_quantised_weights_are_no_reference(base: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(base)
    config.quantization_config = {"quant_method": "awq", "bits": 4}
    copied = _copied(base, tmp_path / "quantised")
    config.save_pretrained(copied)
    assert "its weights are quantised (awq); gradients need" in _refused(copied, tmp_path)


def test_an_encoder_is_no_reference(base: Path, tmp_path: Path) -> None:
    copied = _copied(base, tmp_path / "encoder")
    (copied / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    assert "it is an encoder-decoder; members must be decoders" in _refused(copied, tmp_path)


def test_a_reference_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "there is no such directory" in _refused(tmp_path / "nowhere", tmp_path)


def test_code_from_a_checkpoint_is_never_run(base: Path, tmp_path: Path) -> None:
    copied = _copied(base, tmp_path / "own")
    settings = json.loads((copied / "config.json").read_text())
    settings |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
    }
    (copied / "config.json").write_text(json.dumps(settings))
    (copied / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "needs code from its repository, which is never run" in _refused(copied, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_never_read(base: Path, tmp_path: Path) -> None:
    copied = _copied(base, tmp_path / "pickled")
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    data = write_rows(tmp_path / "rows.jsonl", LETTERS)
    with pytest.raises(OSError, match="safetensors"):
        trained("sft", copied, data, tmp_path / "out", held_out=0.0)


def test_a_conversation_needs_a_template(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", template=None)
    said = _refused(base, tmp_path, "dpo", pairs(3))
    assert "has no chat template, and the data's prompts are conversations; give prompts as text" in said


def test_what_a_template_refuses_is_named_by_example(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", template="{{ raise_exception('no users') }}" + TEMPLATE)
    assert "example 'row-1': prompt: the chat template refuses it: no users" in _refused(
        base, tmp_path, "dpo", pairs(3)
    )


@pytest.mark.parametrize("recipe", ["dpo", "extend", "arm"])
def test_pairs_are_needed_where_pairs_are_learnt(recipe: str, base: Path, tmp_path: Path) -> None:
    assert f"has one answer a prompt, and {recipe} learns from pairs" in _refused(base, tmp_path, recipe)


def test_pairs_of_equal_answers_are_told_and_nothing_else_is_refused(base: Path, tmp_path: Path) -> None:
    alike = [row | {"rejected": row["chosen"]} for row in pairs(3)]
    assert "both answers are the same in all 3 pairs" in _refused(base, tmp_path, "dpo", alike)
    some = write_rows(tmp_path / "some.jsonl", [*alike[:1], *pairs(5)[1:]])
    with Progress() as progress:
        prepared = prepare(plan_of("dpo", base, some, tmp_path / "out", held_out=0.0), progress)
    assert prepared.notes == [
        "both answers are the same in 1 of 5 pairs: a loss on pairs learns nothing from these",
        "5 examples to learn from: that is few, and learnt by heart",
    ]


def test_a_token_without_a_row_is_never_given_one(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", 0)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"vocab_size": 91, "pad_token_id": None}))
    assert "example 'row-1': its token 91 has no row in" in _refused(base, tmp_path)


def test_a_folder_that_holds_something_is_left_alone(base: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r"--out .*: is not empty; give a new folder"):
        trained("sft", base, data, tmp_path)
    with pytest.raises(TrainingError, match=r"--out .*: is a file; expected a new folder"):
        trained("sft", base, data, tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_larger_base_has_to_share_the_vocabulary(base: Path, tmp_path: Path) -> None:
    large = write_base(tmp_path / "large")
    tokenizer = json.loads((large / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (large / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = _refused(base, tmp_path, large=str(large))
    assert "the expert could not be served: " in said
    assert "'a'" in said or "'b'" in said


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"use_dora": True}, "use_dora is true: DoRA rescales the reference's weights"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is an array: whole modules besides"),
        ({"bias": "all"}, "bias is 'all': an adapter that trains biases"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa': this initialisation changes"),
    ],
)
def test_a_form_of_adapter_that_a_recipe_cannot_say_would_be_refused_as_well(
    feature: dict[str, Any], message: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | feature
    if "init_lora_weights" in feature:
        # PEFT would decompose weights that are not there; what is written down of it is the same.
        made = LoraConfig(**settings | {"init_lora_weights": True})
        made_with = lambda *_: made  # noqa: E731
        monkeypatch.setattr(LoraConfig, "save_pretrained", _saved_as(made, feature))
    else:
        made_with = lambda *_: LoraConfig(**settings)  # noqa: E731
    monkeypatch.setattr(phases, "lora_config", made_with)
    assert message in _refused(base, tmp_path)


def _saved_as(made: LoraConfig, feature: dict[str, Any]) -> Any:
    def save(self: LoraConfig, folder: Path, **_: Any) -> None:
        stored = made.to_dict() | feature | {"target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(stored, default=str))

    return save


@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
def test_checkpoints_that_would_fill_the_disk_are_refused(
    full: bool, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals.shutil, "disk_usage", lambda _: SimpleNamespace(free=20_000))
    with pytest.raises(
        TrainingError, match=r"--out .*: 1 checkpoints and .* take \d.\d+ MB, and 0.02 MB are free"
    ):
        trained("sft", base, data, tmp_path / "out", full=full)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64")])
def test_a_disk_that_fills_up_on_the_way_is_named(
    error: Exception, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        monkeypatch.setattr(run.shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
        raise error

    monkeypatch.setattr(phases, "save_expert", fill)
    with pytest.raises(
        TrainingError, match=r"--out .*: the disk is full \(.*\); make room, and run .* --resume"
    ):
        trained("sft", base, data, tmp_path / "out")


def test_other_errors_stay_what_they_are(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("another one")

    monkeypatch.setattr(phases, "save_expert", fail)
    with pytest.raises(RuntimeError, match="another one"):
        trained("sft", base, data, tmp_path / "out")


def test_a_training_that_diverges_ends_at_once(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "compared", lambda *_: Point(float("nan")))
    with pytest.raises(
        TrainingError, match=r"after 0 examples the model's log-probabilities are nan: .*lower"
    ):
        trained("sft", base, data, tmp_path / "out")


def test_one_process_trains(base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="eft train runs in one process"):
        trained("sft", base, data, tmp_path / "out")


@pytest.mark.engine
def test_an_architecture_that_the_engine_lacks_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "rotary_dim": 8, "n_positions": 256}
    copied = _copied(base, tmp_path / "codegen")
    (copied / "config.json").write_text(
        json.dumps(
            {"model_type": "codegen", "architectures": ["CodeGenForCausalLM"], "vocab_size": 96, **sizes}
        )
    )
    plan = plan_of("sft", copied, data, tmp_path / "out", "lora.targets=[qkv_proj]", verify=True)
    from eft_client.progress import Progress
    from eft_train.preparation import prepare

    with (
        Progress() as progress,
        pytest.raises(TrainingError, match=r"(?s)could not be served: .*CodeGenForCausalLM"),
    ):
        prepare(plan, progress)


def _copied(base: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
