"""The data of a training: read from a file or a hub's data set, hashed, and divided by prompt."""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eft_client.jsonl import json_value, write_whole
from eft_client.text import decoded
from eft_train.data.forms import EmptyAnswer, Example, RowError, example_of, prompt_key
from eft_train.errors import TrainingError

__all__ = ["Data", "DataSource", "Division", "divide", "read_data", "write_examples"]

MAX_LINE_BYTES = 1 << 22
_ENDINGS = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True)
class DataSource:
    """Where rows come from.

    Attributes:
        name: A JSONL file, or a data set of a hub: a name there, or a directory of its files.
        split: The data set's split.
        subset: The data set's configuration.
        folder: The data set's folder, such as helpful-base of HH-rlhf.
        revision: The data set's revision on the hub.
    """

    name: str
    split: str = "train"
    subset: str | None = None
    folder: str | None = None
    revision: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a JSONL file."""
        return Path(self.name).is_file() or self.name.endswith(_ENDINGS)


@dataclass(frozen=True)
class Data:
    """What was read.

    Attributes:
        source: Where it was read.
        examples: The rows, as examples.
        sha256: Of the file's bytes; for a hub's data set, of the rows as JSON lines.
        left_out: Why dialogues of HH-rlhf, and rows of other data sets without an answer, are left out; a line each.
    """

    source: DataSource
    examples: tuple[Example, ...]
    sha256: str
    left_out: tuple[str, ...] = ()

    @property
    def has_pairs(self) -> bool:
        """Whether each prompt has two answers."""
        return self.examples[0].rejected is not None

    @property
    def alike(self) -> int:
        """How many pairs have two equal answers."""
        return sum(example.chosen == example.rejected for example in self.examples)


@dataclass(frozen=True)
class Division:
    """Data divided by prompt.

    Attributes:
        trained_on: The examples to learn from.
        held_out: Those that are never learnt.
        shared: How many were left out because their prompts are held out.
    """

    trained_on: tuple[Example, ...]
    held_out: tuple[Example, ...]
    shared: int = 0


def read_data(source: DataSource, *, hh_as_text: bool = False) -> Data:
    """Read all rows.

    Raises:
        TrainingError: A row is in none of the forms, or rows differ in form; the message names file, line and field.
    """
    rows, sha256 = _file_rows(Path(source.name)) if source.is_file else _hub_rows(source)
    examples: dict[str, Example] = {}
    left_out = []
    for place, usual_id, row in rows:
        try:
            example = example_of(row, usual_id, hh_as_text=hh_as_text)
        except RowError as error:
            if not _is_dialogue(row) and (source.is_file or not isinstance(error, EmptyAnswer)):
                raise TrainingError(f"{place}: {error}") from None
            left_out.append(f"{place}: {error}")
            continue
        if example.id in examples and example.id == row.get("prompt_id") != row.get("id"):
            example = replace(example, id=usual_id)  # One of several pairs of a prompt.
        if example.id in examples:
            raise TrainingError(f"{place}: id: {example.id!r} has been given before")
        _require_alike(next(iter(examples.values()), example), example, place)
        examples[example.id] = example
    if not examples:
        raise TrainingError(f"{source.name}: {left_out[0] if left_out else 'holds no rows'}")
    return Data(source, tuple(examples.values()), sha256, tuple(left_out))


def divide(data: Data, held_out: float | Data, seed: int, most: int | None = None) -> Division:
    """Divide examples by prompt, so that no prompt is on both sides.

    Args:
        data: The data.
        held_out: The share of the examples to hold out, 0 for none; or data to hold out instead.
        seed: Decides which prompts are held out.
        most: The greatest number of examples to learn from, from the first on.

    Raises:
        TrainingError: Nothing is left to learn from.
    """
    if isinstance(held_out, Data):
        apart = held_out.examples
        _require_alike(data.examples[0], apart[0], held_out.source.name)
    else:
        apart = _drawn(data.examples, held_out, seed)
    taken = {prompt_key(example.prompt) for example in apart}
    left = [example for example in data.examples if prompt_key(example.prompt) not in taken]
    shared = len(data.examples) - len(left) if isinstance(held_out, Data) else 0
    if not left:
        raise TrainingError(
            f"{data.source.name}: nothing is left to learn from, since every prompt is held out"
        )
    return Division(tuple(left[:most]), apart, shared)


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write examples as JSON lines, whole or not at all."""
    lines = (json.dumps(example.as_json(), ensure_ascii=False) + "\n" for example in examples)
    write_whole(path, "".join(lines))


def _drawn(examples: Sequence[Example], share: float, seed: int) -> tuple[Example, ...]:
    """Whole prompts by chance, until the share is reached; in the order of the data."""
    prompts: dict[str, int] = {}
    for example in examples:
        prompts[prompt_key(example.prompt)] = prompts.get(prompt_key(example.prompt), 0) + 1
    order = list(prompts)
    random.Random(seed).shuffle(order)
    wanted, taken = share * len(examples), set[str]()
    for prompt in order:
        if wanted < 0.5:
            break
        taken.add(prompt)
        wanted -= prompts[prompt]
    return tuple(example for example in examples if prompt_key(example.prompt) in taken)


def _require_alike(first: Example, example: Example, place: str) -> None:
    kinds = (
        ("prompt", first.is_conversation, example.is_conversation, ("text", "a conversation")),
        ("rejected", first.rejected is None, example.rejected is None, ("given", "missing")),
    )
    for name, before, now, words in kinds:
        if before != now:
            raise TrainingError(f"{place}: {name}: is {words[now]}; in the first row it is {words[before]}")


def _is_dialogue(row: Any) -> bool:
    """Whether a row is meant to be one of HH-rlhf, of which some are known to be broken."""
    if not isinstance(row, Mapping) or row.get("prompt") is not None:
        return False
    both = (row.get("chosen"), row.get("rejected"))
    return all(isinstance(text, str) and text.startswith("\n\nHuman:") for text in both)


_Rows = Iterator[tuple[str, str, Any]]
"""Of each row its place for messages, the id that it has unless it names one, and its value."""


def _file_rows(path: Path) -> tuple[_Rows, str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror or error}") from None
    return _lines(path, content), hashlib.sha256(content).hexdigest()


def _lines(path: Path, content: bytes) -> _Rows:
    for number, line in enumerate(content.split(b"\n"), 1):
        place = f"{path}:{number}"
        if len(line) > MAX_LINE_BYTES:
            raise TrainingError(f"{place}: is longer than {MAX_LINE_BYTES:,} bytes")
        if not line.strip():
            continue
        try:
            yield place, f"row-{number}", json_value(decoded(line))
        except ValueError as error:
            raise TrainingError(f"{place}: {error}; expected a JSON object in each line") from None


def _hub_rows(source: DataSource) -> tuple[_Rows, str]:
    """The rows of a data set; code from its repository is never run."""
    from datasets import load_dataset

    options = {"data_dir": source.folder, "revision": source.revision, "split": source.split}
    try:
        rows = load_dataset(source.name, source.subset, **options)
    except Exception as error:  # The library raises whatever its readers raise.
        raise TrainingError(
            f"{source.name}: is no file here, and as a directory or a hub's data set: {_first_line(error)}"
        ) from error
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=False, sort_keys=True, default=str).encode() + b"\n")
    named = (
        (f"{source.name}, split {source.split}, row {number}", f"row-{number}", row)
        for number, row in enumerate(rows)
    )
    return named, digest.hexdigest()


def _first_line(error: BaseException) -> str:
    said = str(error).strip() or type(error).__name__
    return said.splitlines()[0][:500]
