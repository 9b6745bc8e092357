"""What is measured: settings, and mixes of settings that share one target's traffic."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eft_client.load.errors import LoadError
from eft_client.settings import Setting
from eft_client.text import finite_number

__all__ = ["Part", "Target", "targets"]

_MIX = re.compile(r"(?P<name>[^\s=]+)=(?P<parts>.+)")


@dataclass(frozen=True)
class Part:
    """A setting and its share of the requests, relative to the other parts'."""

    share: float
    setting: Setting


@dataclass(frozen=True)
class Target:
    """What one row of the tables is about: most often one setting, else a mix chosen from request by request."""

    name: str
    parts: tuple[Part, ...]

    def choose(self, rng: random.Random) -> Setting:
        """The setting of the next request."""
        if len(self.parts) == 1:
            return self.parts[0].setting
        return rng.choices(self.parts, [part.share for part in self.parts])[0].setting


def targets(
    settings: Sequence[Setting], mixes: Sequence[str] = (), *, parts_too: bool = True
) -> list[Target]:
    """The settings, then the mixes.

    Args:
        settings: with names that are unique.
        mixes: each `NAME=SHARE*SETTING SHARE*SETTING …`, of settings by their names.
        parts_too: whether settings that a mix is made of are targets by themselves, too.

    Raises:
        LoadError: Two have one name, or a mix has another form or names an unknown setting.
    """
    known = {setting.name: setting for setting in settings}
    mixed = [_mix(text, known) for text in mixes]
    used = {part.setting.name for mix in mixed for part in mix.parts}
    single = [
        Target(setting.name, (Part(1.0, setting),))
        for setting in settings
        if parts_too or setting.name not in used
    ]
    found = [*single, *mixed]
    names = [setting.name for setting in settings] + [mix.name for mix in mixed]
    for name in names:
        if names.count(name) > 1:
            raise LoadError(
                f"two settings are called {name!r}; expected distinct names, such as NAME=MODEL …"
            )
    return found


def _mix(text: str, known: Mapping[str, Setting]) -> Target:
    found = _MIX.fullmatch(text.strip())
    if not found:
        raise LoadError(f"mix {text!r}: expected NAME=SHARE*SETTING SHARE*SETTING …")
    parts = tuple(_part(word, text, known) for word in found["parts"].split())
    if len(parts) < 2:
        raise LoadError(f"mix {text!r}: a mix has two settings or more")
    return Target(found["name"], parts)


def _part(word: str, text: str, known: Mapping[str, Setting]) -> Part:
    share, star, name = word.partition("*")
    number = finite_number(share)
    if not star or number is None or number <= 0:
        raise LoadError(f"mix {text!r}: {word!r} is not SHARE*SETTING with a share above 0")
    if name not in known:
        raise LoadError(f"mix {text!r}: no setting is called {name!r}; known: {', '.join(known) or 'none'}")
    return Part(number, known[name])
