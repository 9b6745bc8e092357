"""Settings, and mixes of them."""

import random
from collections import Counter

import pytest

from eft_client.load.errors import LoadError
from eft_client.load.targets import targets
from eft_client.settings import parse_setting

SETTINGS = [parse_setting("careful=demo harmless=1"), parse_setting("plain=demo/base")]


def test_every_setting_is_a_target_and_mixes_follow() -> None:
    found = targets(SETTINGS, ["traffic=3*careful 1*plain"])
    assert [one.name for one in found] == ["careful", "plain", "traffic"]
    assert [(part.share, part.setting.name) for part in found[2].parts] == [(3, "careful"), (1, "plain")]


def test_a_mix_draws_by_share_and_by_seed() -> None:
    (mix,) = targets(SETTINGS, ["traffic=3*careful 1*plain"], parts_too=False)
    drawn = Counter(mix.choose(chance).name for chance in [random.Random(0)] for _ in range(4000))
    assert drawn["careful"] == pytest.approx(3000, abs=120)
    first, second = (random.Random(7), random.Random(7))
    assert [mix.choose(first).name for _ in range(50)] == [mix.choose(second).name for _ in range(50)]


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(LoadError, match="two settings are called 'careful'"):
        targets([*SETTINGS, SETTINGS[0]])
    with pytest.raises(LoadError, match="two settings are called 'plain'"):
        targets(SETTINGS, ["plain=1*careful 1*plain"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("traffic", "NAME=SHARE"),
        ("traffic=1*careful", "two settings or more"),
        ("traffic=1*careful 1*unknown", "no setting is called 'unknown'; known: careful, plain"),
        ("traffic=0*careful 1*plain", r"'0\*careful' is not SHARE\*SETTING"),
        ("traffic=nan*careful 1*plain", r"'nan\*careful'"),
        ("traffic=careful plain", "'careful' is not"),
    ],
)
def test_a_mix_that_is_none_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(LoadError, match=problem):
        targets(SETTINGS, [text])
