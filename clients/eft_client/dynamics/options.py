"""From the command's options to a plan; every mistake is found before anything is asked."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eft_client.dynamics.axis import read_checkpoints
from eft_client.dynamics.errors import DynamicsError
from eft_client.dynamics.texts.text import HELD_OUT, TRAINING
from eft_client.pairs.pair import Pair, read_pairs
from eft_client.settings import SettingError, sweep

__all__ = ["DynamicsOptions", "DynamicsPlan", "planned"]

_BESIDE = {TRAINING: "trained-on.jsonl", HELD_OUT: "held-out.jsonl"}
_RECORD = "training.json"
_LEAST_PROMPTS = 2


@dataclass(frozen=True, kw_only=True)
class DynamicsOptions:
    """The command's options, as they were given; `eft dynamics --help` says what each means."""

    family: str | None = None
    data: Path | None = None
    held_out: Path | None = None
    output: Path = Path("bench-results/dynamics")
    prompts: int = 100
    rephrase: bool = False
    max_tokens: int = 128
    temperature: float = 0.0
    end: bool = True
    checkpoints: str | None = None
    group: int | None = None
    over: Sequence[str] = ()
    by: Literal["margin", "accuracy"] = "margin"
    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    overrides: Sequence[str] = ()
    concurrency: int = 4
    seed: int = 0
    repeats: int = 10_000


@dataclass(frozen=True, kw_only=True)
class DynamicsPlan:
    """What a study asks.

    Attributes:
        options: the command's.
        pairs: the prompts by side: training, and held-out where there are any.
        digests: of the files that they are from, by side.
        made: the digest of the record of the training, or of the family file; None where there is neither.
        repeated: held-out prompts that are training prompts, too.
        checkpoints: examples seen by expert, if they were given.
    """

    options: DynamicsOptions
    pairs: Mapping[str, Sequence[Pair]]
    digests: Mapping[str, str]
    made: str | None
    repeated: int
    checkpoints: Mapping[str, int] | None = None


def planned(options: DynamicsOptions) -> DynamicsPlan:
    """The plan.

    Raises:
        DynamicsError: There is neither a family nor a server, or no data.
        PairsError: A file of pairs cannot be read.
    """
    if options.family is None and options.url is None:
        raise DynamicsError("neither a family nor --url; give a family file, or the URL of a running server")
    for text in options.over:
        _require_range(text)
    if options.group is not None and (options.over or options.url):
        other = "--over" if options.over else "--url"
        raise DynamicsError(f"--group starts several engines, and {other} needs one; leave one of them out")
    checkpoints = None if options.checkpoints is None else read_checkpoints(options.checkpoints)
    _require_family(options.family)
    files = _files(options)
    every = {side: read_pairs(path) for side, path in files.items()}
    _require_alike(every, files)
    trained = {_prompt(pair) for pair in every[TRAINING]}
    return DynamicsPlan(
        options=options,
        pairs={side: _drawn(pairs, options, files[side]) for side, pairs in every.items()},
        digests={side: _digest(path) for side, path in files.items()},
        made=_made(options.family),
        repeated=sum(_prompt(pair) in trained for pair in every.get(HELD_OUT, ())),
        checkpoints=checkpoints,
    )


def _require_family(family: str | None) -> None:
    """A name without a folder or an ending may be a bundled family's, which the engine knows."""
    if family is None or Path(family).expanduser().is_file():
        return
    if Path(family).name != family or Path(family).suffix:
        raise DynamicsError(f"{family}: no such family file")


def _require_alike(every: Mapping[str, Sequence[Pair]], files: Mapping[str, Path]) -> None:
    has = {path: {pair.rejected is not None for pair in every[side]} for side, path in files.items()}
    paired = [path for path, kinds in has.items() if True in kinds]
    single = [path for path, kinds in has.items() if False in kinds]
    if paired and single:
        raise DynamicsError(
            f"{single[0]} has lines with one answer, and {paired[0]} has pairs; expected pairs everywhere, or nowhere"
        )


def _require_range(text: str) -> None:
    try:
        sweep(text)
    except SettingError as error:
        raise DynamicsError(f"--over: {error}") from None


def _files(options: DynamicsOptions) -> dict[str, Path]:
    """The files given; else those that `eft train` leaves beside its family file."""
    beside = _beside(options.family)
    given = {TRAINING: options.data, HELD_OUT: options.held_out}
    if options.data is None:
        given = {side: given[side] or beside.get(side) for side in given}
    files = {side: path for side, path in given.items() if path is not None}
    if TRAINING not in files:
        raise DynamicsError(
            f"no data: give --data, a JSONL file of prompt, chosen and rejected; or a family file in a folder of eft "
            f"train, with {_RECORD} and {_BESIDE[TRAINING]} beside it"
        )
    return files


def _beside(family: str | None) -> dict[str, Path]:
    folder = Path(family).expanduser().parent if family else None
    if folder is None or not (folder / _RECORD).is_file():
        return {}
    return {side: folder / name for side, name in _BESIDE.items() if (folder / name).is_file()}


def _drawn(pairs: Sequence[Pair], options: DynamicsOptions, path: Path) -> list[Pair]:
    """Some of a file's pairs, one for each prompt, in its order."""
    order = list(range(len(pairs)))
    random.Random(options.seed).shuffle(order)
    chosen: dict[str, int] = {}
    for index in order:
        if len(chosen) == options.prompts:
            break
        chosen.setdefault(_prompt(pairs[index]), index)
    if len(chosen) < _LEAST_PROMPTS:
        raise DynamicsError(
            f"{path}: {len(chosen)} prompt; expected {_LEAST_PROMPTS} or more different ones, over which intervals are"
        )
    return [pairs[index] for index in sorted(chosen.values())]


def _prompt(pair: Pair) -> str:
    return json.dumps(pair.prompt, sort_keys=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _made(family: str | None) -> str | None:
    if family is None:
        return None
    path = Path(family).expanduser()
    record = path.parent / _RECORD
    found = record if record.is_file() else path
    return _digest(found) if found.is_file() else None
