"""Trainings of seconds: each recipe teaches what it says, and the folder holds what its record says."""

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from eft_server.family.checkpoint import read_checkpoint, read_tokenizer
from eft_server.family.family import Source
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config
from eft_train.data.reading import DataSource, read_data
from eft_train.data.tokens import Tokenised, tokenised
from eft_train.measuring import Answers, compared, log_probs
from eft_train.run import Trained

from .tiny import trained, write_base, write_rows

QUICK = (
    "batch=4",
    "accumulation=1",
    "warmup=0",
    "schedule=constant",
    "learning_rate=3e-3",
    "full_learning_rate=3e-3",
)
RECIPES = ("sft", "dpo", "extend", "arm")
Folder = Callable[[str, bool], Trained]


def _settings(*phases: str) -> list[str]:
    return [f"{phase}.{setting}" for phase in phases for setting in QUICK]


@pytest.fixture(scope="module")
def training(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Each recipe once, with an adapter or with all weights."""

    @cache
    def run(recipe: str, full: bool) -> Trained:
        phases = ("sft", "dpo") if recipe == "extend" else (recipe,)
        out = tmp_path_factory.mktemp("trained") / f"{recipe}-{'full' if full else 'lora'}"
        return trained(recipe, base, data, out, *_settings(*phases), full=full, checkpoint_every=8)

    return run


def _examples(path: Path, base: Path) -> list[Tokenised]:
    checkpoint = read_checkpoint("base", Source(str(base)))
    tokenizer = read_tokenizer(str(base), None)
    return tokenised(read_data(DataSource(str(path))).examples, checkpoint, tokenizer)


def _model(base: Path, expert: Path | None = None) -> Any:
    if expert is None or (expert / "adapter_config.json").is_file():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return model if expert is None else PeftModel.from_pretrained(model, expert)
    return AutoModelForCausalLM.from_pretrained(expert, dtype=torch.float32)


def _means(answers: Sequence[Answers]) -> tuple[float, float]:
    chosen, rejected = zip(*(answer.totals for answer in answers), strict=True)
    return fmean(chosen), fmean(rejected)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_expert_is_what_the_record_says(recipe: str, full: bool, training: Folder, base: Path) -> None:
    run = training(recipe, full)
    held_out = _examples(run.folder / "held-out.jsonl", base)
    now, start = (log_probs(_model(base, expert), held_out) for expert in (run.folder / "expert", None))
    found = compared(now, None if recipe == "arm" else start)
    last = run.record["curves"][-1]
    assert (last["logps_chosen"], last["logps_rejected"]) == pytest.approx(_means(now), abs=1e-3)
    assert (last["margin"], last["accuracy"]) == pytest.approx((found.margin, found.accuracy), abs=1e-3)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_teaches(recipe: str, full: bool, training: Folder) -> None:
    run = training(recipe, full)
    last = run.record["curves"][-1]
    before = [point for point in run.record["curves"] if point["phase"] != last["phase"]]
    first = before[-1] if before else run.record["curves"][0]
    if recipe == "extend":
        assert first["logps_chosen"] > before[0]["logps_chosen"] + 1
        assert first["logps_rejected"] > before[0]["logps_rejected"] + 1
    if recipe == "sft":
        assert last["logps_chosen"] > first["logps_chosen"] + 1
    else:
        assert last["margin"] > first["margin"] + 1
    losses = [point["loss"] for point in run.record["losses"] if point["phase"] == last["phase"]]
    assert fmean(losses[-2:]) < losses[0]


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_first_loss_is_that_of_the_formula(
    recipe: str, full: bool, base: Path, data: Path, tmp_path: Path
) -> None:
    phase = "sft" if recipe == "extend" else recipe
    one_step = [f"{phase}.batch=32", f"{phase}.accumulation=1", f"{phase}.epochs=1"]
    if recipe == "extend":
        one_step += ["dpo.epochs=1", "dpo.batch=32"]
    run = trained(recipe, base, data, tmp_path / "out", *one_step, full=full)
    texts = _examples(run.folder / "trained-on.jsonl", base)
    answers = log_probs(_model(base), texts)
    loss = {
        "sft": lambda: -fmean(logp for answer in answers for logp in answer.chosen),
        "extend": lambda: -fmean(p for answer in answers for p in (*answer.chosen, *(answer.rejected or ()))),
        "dpo": lambda: math.log(2),
        "arm": lambda: (
            -fmean(
                float(logsigmoid(torch.tensor(0.05 * (chosen - (rejected or 0)))))
                for chosen, rejected in (answer.totals for answer in answers)
            )
        ),
    }[recipe]()
    assert run.record["losses"][0]["loss"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_dpo_goes_on_from_where_sft_ended(full: bool, training: Folder, base: Path) -> None:
    run = training("extend", full)
    begun = next(point for point in run.record["losses"] if point["phase"] == "dpo")
    assert begun["loss"] == pytest.approx(math.log(2), abs=1e-5), "its reference is the model after SFT"
    held_out = _examples(run.folder / "held-out.jsonl", base)
    between = _means(log_probs(_model(base, run.folder / "phases" / "sft" / "expert"), held_out))
    after_sft = [point for point in run.record["curves"] if point["phase"] == "sft"][-1]
    assert between == pytest.approx((after_sft["logps_chosen"], after_sft["logps_rejected"]), abs=1e-3)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_a_second_phase_that_learns_nothing_leaves_the_first_ones_expert(
    full: bool, base: Path, data: Path, tmp_path: Path
) -> None:
    still = [f"dpo.{name}learning_rate=1e-12" for name in ("", "full_")]
    run = trained("extend", base, data, tmp_path / "out", *_settings("sft"), *still, full=full)
    weights = "model.safetensors" if full else "adapter_model.safetensors"
    after_sft, at_the_end = (
        load_file(folder / "expert" / weights) for folder in (run.folder / "phases" / "sft", run.folder)
    )
    assert all(torch.allclose(after_sft[name], at_the_end[name], atol=1e-7) for name in after_sft)


def test_the_adapter_of_two_phases_is_one(training: Folder) -> None:
    run = training("extend", False)
    names = [set(load_file(folder / "adapter_model.safetensors")) for folder in (
        run.folder / "phases" / "sft" / "expert", run.folder / "expert",
    )]  # fmt: skip
    assert names[0] == names[1]
    assert not any(".ref." in name for name in names[1])


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_family_files_are_families(recipe: str, full: bool, training: Folder) -> None:
    run = training(recipe, full)
    for name in ("family.yaml", "checkpoints.yaml"):
        report = inspect_family(load_config(str(run.folder / name)))
        assert report.warnings == ()
        assert all((member.adapter_of is None) is full for member in report.members[1:])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_checkpoint_is_an_expert_by_the_examples_seen(
    recipe: str, training: Folder, base: Path
) -> None:
    run = training(recipe, False)
    held_out = _examples(run.folder / "held-out.jsonl", base)
    experts = load_config(str(run.folder / "checkpoints.yaml")).experts
    curves = [point for point in run.record["curves"] if point["examples"] > 0]
    assert list(experts) == [f"after-{point['examples']:06}" for point in curves]
    for point, expert in zip(curves, experts.values(), strict=True):
        found = _means(log_probs(_model(base, Path(expert.adapter or "")), held_out))
        assert found == pytest.approx((point["logps_chosen"], point["logps_rejected"]), abs=1e-3)


def test_examples_seen_go_on_over_phases(training: Folder) -> None:
    seen = [(point["phase"], point["examples"]) for point in training("extend", False).record["curves"]]
    # 16 pairs: two texts each in two epochs of SFT, then as many pairs.
    assert seen == [("sft", n) for n in range(0, 65, 8)] + [("dpo", 72), ("dpo", 80)]


def test_the_folder_holds_what_is_promised_and_nothing_else(training: Folder) -> None:
    run = training("extend", False)
    assert {path.name for path in run.folder.iterdir()} == {
        "README.md", "checkpoints", "checkpoints.yaml", "curves.png", "expert", "family.yaml", "held-out.jsonl",
        "phases", "trained-on.jsonl", "training.json",
    }  # fmt: skip
    for folder in (
        run.folder / "expert",
        run.folder / "phases" / "sft" / "expert",
        run.folder / "checkpoints" / "000008",
    ):
        assert {path.name for path in folder.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
    assert json.loads((run.folder / "training.json").read_text()) == run.record


def test_held_out_examples_are_written_as_they_came(training: Folder, data: Path) -> None:
    run = training("dpo", False)
    rows = {json.dumps(row["prompt"]): row for row in map(json.loads, data.read_text().splitlines())}
    lines = [[json.loads(line) for line in (run.folder / name).read_text().splitlines()]
             for name in ("trained-on.jsonl", "held-out.jsonl")]  # fmt: skip
    assert [len(part) for part in lines] == [16, 4]
    for row in (*lines[0], *lines[1]):
        assert row == rows[json.dumps(row["prompt"])] | {"id": row["id"]}
    assert run.record["held_out"] == [row["id"] for row in lines[1]]


def test_a_reward_model_is_served_by_coefficients(training: Folder) -> None:
    config = load_config(str(training("arm", False).folder / "family.yaml"))
    allowed = config.limits.coefficients
    assert allowed is not None and allowed.min <= 0 and allowed.max >= 1
    assert config.defaults.scale == 0, "by default the base speaks, and not the reward"
    assert (
        '"coefficients": {"base": 1.0, "expert": 1.0}'
        in (training("arm", False).folder / "README.md").read_text()
    )


def test_an_expert_of_all_weights_is_loaded_with_its_cache(training: Folder) -> None:
    assert (
        json.loads((training("sft", True).folder / "expert" / "config.json").read_text())["use_cache"] is True
    )


def test_the_card_says_what_was_done(training: Folder) -> None:
    run = training("dpo", False)
    card = (run.folder / "README.md").read_text()
    for said in (
        run.record["data"]["sha256"],
        "eft serve family.yaml",
        "Seed 0, float32 on cpu",
        "trl 1.",
        "| dpo |",
    ):
        assert said in card


def test_the_same_seed_gives_the_same_expert(base: Path, data: Path, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        run = trained("sft", base, data, tmp_path / name, *_settings("sft"), seed=seed)
        return load_file(run.folder / "expert" / "adapter_model.safetensors")

    first, again, other = weights("one", 1), weights("two", 1), weights("three", 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("loss", ["ipo", "hinge", "robust", "apo_zero", "sigmoid_norm"])
def test_other_losses_on_pairs_teach_as_well(loss: str, base: Path, data: Path, tmp_path: Path) -> None:
    run = trained("dpo", base, data, tmp_path / "out", *_settings("dpo"), f"dpo.loss={loss}")
    assert run.record["curves"][-1]["margin"] > 0


def test_text_is_learnt_without_a_template(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", template=None)
    data = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": f"q{n}:", "completion": f"a{n}"} for n in range(20)]
    )
    run = trained("sft", base, data, tmp_path / "out", *_settings("sft"), "sft.epochs=4")
    assert run.record["curves"][-1]["logps_chosen"] > run.record["curves"][0]["logps_chosen"] + 1
    assert run.record["curves"][-1]["margin"] is None


def test_with_nothing_held_out_learnt_examples_are_measured(base: Path, data: Path, tmp_path: Path) -> None:
    run = trained("dpo", base, data, tmp_path / "out", held_out=0.0)
    assert run.record["measured_on"] == "trained-on.jsonl"
    assert (run.record["held_out"], (run.folder / "held-out.jsonl").read_text()) == ([], "")
    assert len(run.record["measured"]) == 20


def test_a_larger_base_is_served_beside_the_reference(base: Path, data: Path, tmp_path: Path) -> None:
    large = write_base(tmp_path / "large", num_hidden_layers=3)
    run = trained("dpo", base, data, tmp_path / "out", large=str(large))
    config = load_config(str(run.folder / "family.yaml"))
    assert config.base.model == str(large)
    assert (config.references["reference"].model, config.experts["expert"].reference) == (
        str(base),
        "reference",
    )
    assert inspect_family(config).warnings == ()
