"""Recipes: the bundled ones, what can be set, and what is refused by name."""

from pathlib import Path

import pytest

from eft_server.errors import ConfigError
from eft_train.recipe import bundled_recipes, load_recipe

BUNDLED = ("sft", "dpo", "extend", "arm")


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_recipe_has_a_source_beside_each_number(name: str) -> None:
    lines = bundled_recipes()[name].read_text().splitlines()
    bare = [
        line
        for line in lines
        if ":" in line and line.partition(":")[2].strip()[:1].isdigit() and "#" not in line
    ]
    # The size of a batch on the device is nobody's finding: the examples of a step stand beside accumulation.
    assert [line.strip() for line in bare] == ["batch: 4"] * len(load_recipe(name).phases)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_recipe_is_known_by_its_file_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_a_phase_is_set_by_its_name() -> None:
    recipe = load_recipe("extend", ["dpo.beta=0.3", "phases.sft.batch=2", "lora.rank=8"])
    assert (recipe.phases["dpo"].beta, recipe.phases["sft"].batch, recipe.lora.rank) == (0.3, 2, 8)


def test_epochs_are_those_of_every_phase() -> None:
    recipe = load_recipe("extend", ["sft.epochs=5"], epochs=3)
    assert [phase.epochs for phase in recipe.phases.values()] == [3, 3]


def test_a_file_is_a_recipe_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        bundled_recipes()["dpo"].read_text().replace("name: dpo", "name: mine").replace("0.1  ", "0.7  ")
    )
    assert load_recipe(str(path)).phases["dpo"].beta == 0.7


def test_texts_are_not_longer_than_the_model_reads() -> None:
    lengths = {
        name: phase.max_length
        for name, phase in load_recipe("extend", ["sft.max_length=64"]).within(512).phases.items()
    }
    assert lengths == {"sft": 64, "dpo": 512}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dpo.beta=0", r"--set phases.dpo.beta: phases.dpo.beta: .*greater than 0, not 0"),
        ("dpo.beta=.nan", r"--set phases.dpo.beta: .*finite"),
        ("nodpo.beta=1", "--set nodpo: nodpo: unknown key; known here: name, description, lora, phases"),
        ("dpo.loss=best", r"--set phases.dpo.loss: .*: 'best' is no loss; expected one of sft, sigmoid"),
        ("dpo.rate=1", r"phases.dpo.rate: unknown key; known here: loss, answers, beta"),
        ("lora.rank=1024", r"lora.rank: .*less than or equal to 512, not 1024"),
        ("lora.use_dora=true", r"lora.use_dora: unknown key; known here: rank, alpha, dropout, targets"),
        ("lora.modules_to_save=[lm_head]", r"lora.modules_to_save: unknown key"),
        ("lora.bias=all", r"lora.bias: unknown key"),
        ("dpo.batch=0", r"phases.dpo.batch: .*greater than or equal to 1"),
        ("dpo.schedule=steep", r"phases.dpo.schedule: .*'constant', 'linear' or 'cosine', not 'steep'"),
        ("phases={}", r"phases: .*at least 1"),
        ("dpo", r"write dotted.key=value"),
    ],
)
def test_what_is_wrong_is_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("dpo", [setting])


def test_an_unknown_recipe_is_refused_with_those_known() -> None:
    with pytest.raises(
        ConfigError, match=r"'ppo' is neither a recipe's file nor a recipe \(sft, dpo, extend, arm\)"
    ):
        load_recipe("ppo")
