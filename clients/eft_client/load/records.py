"""The record of a run and of each of its requests: one JSON object a line."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from eft_client.jsonl import json_value
from eft_client.load.errors import LoadError
from eft_client.text import decoded

__all__ = ["INTERRUPTED", "Header", "Record", "read_records", "write_header", "write_record"]

MAX_LINE_BYTES = 64 << 20
MAX_RECORDS = 5_000_000
INTERRUPTED = "interrupted"

Time = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a run was: the first line of its file.

    Attributes:
        when: its start, ISO 8601.
        command: what was typed.
        machine: where the client ran.
        workload: the options that say what was asked, by name.
        contestants: each target's name -> what it asks, in words.
        loads: labels, in order.
        baseline: the target that the others are compared with.
        limits: figure -> its upper limit in ms, for goodput.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    when: str
    command: str
    machine: str
    workload: dict[str, Any]
    contestants: dict[str, str]
    loads: list[str]
    baseline: str
    limits: dict[str, Limit]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One request. Times are in ms from the start of its round, by a clock that never goes back.

    Attributes:
        contestant: the name of the target that was asked.
        setting: the target's setting that was chosen.
        load: the label of the round's load.
        repeat: the round's number, from 0.
        index: the request's number in its round, from 0.
        warm_up: whether it is left out of every figure.
        scheduled_ms: when it was to be sent.
        sent_ms: when it was sent.
        chunks_ms: when each piece of output was read.
        end_ms: when the answer was over, or the request had failed.
        prompt_tokens: by the server's usage; None where it sent none.
        output_tokens: likewise.
        finish_reason: the server's.
        error: the kind of failure; None is success.
        message: the failure in words.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    contestant: str
    setting: str
    load: str
    repeat: Count
    index: Count
    warm_up: bool = False
    scheduled_ms: Time
    sent_ms: Time
    chunks_ms: tuple[Time, ...] = ()
    end_ms: Time
    prompt_tokens: Count | None = None
    output_tokens: Count | None = None
    finish_reason: str | None = None
    error: str | None = None
    message: str | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were generated: the server's count, else one for each piece of output."""
        return len(self.chunks_ms) if self.output_tokens is None else self.output_tokens

    @property
    def ttft_ms(self) -> float:
        """Time to first token: from sending to the first piece of output."""
        return self.chunks_ms[0] - self.sent_ms

    @property
    def e2e_ms(self) -> float:
        """From sending to the last piece of output."""
        return self.chunks_ms[-1] - self.sent_ms

    @property
    def ttft_scheduled_ms(self) -> float:
        """Time to first token from when the request was to be sent: the wait of a client that arrives then."""
        return self.chunks_ms[0] - self.scheduled_ms

    @property
    def e2e_scheduled_ms(self) -> float:
        """From when the request was to be sent to the last piece of output."""
        return self.chunks_ms[-1] - self.scheduled_ms

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first; None where there was one at most."""
        return (self.e2e_ms - self.ttft_ms) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def itl_ms(self) -> list[float]:
        """The gaps between pieces of output."""
        return [after - before for before, after in pairwise(self.chunks_ms)]


_header = TypeAdapter(Header)
_record = TypeAdapter(Record)


def write_header(file: TextIO, header: Header) -> None:
    """Write a file's first line."""
    file.write(json.dumps(asdict(header), ensure_ascii=True) + "\n")


def write_record(file: TextIO, record: Record) -> None:
    """Write a line; times are rounded to microseconds, and what says nothing is left out."""
    fields = {key: _rounded(value) for key, value in asdict(record).items() if _says_something(value)}
    file.write(json.dumps(fields, ensure_ascii=True, separators=(",", ":")) + "\n")


def _says_something(value: Any) -> bool:
    return value is not None and value is not False and value != ()


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [round(time, 3) for time in value]
    return round(value, 3) if isinstance(value, float) else value


def read_records(path: Path) -> tuple[Header, list[Record]]:
    """Read a run's file. A last line that was cut off, as by a crash, is left out, and so are empty ones.

    Raises:
        LoadError: The file is missing, or a line of it is something else; the message names the line.
    """
    try:
        with path.open("rb") as file:
            header = _checked(_header, file.readline(MAX_LINE_BYTES), path, 1)
            records = {number: _checked(_record, line, path, number) for number, line in _lines(file, path)}
    except OSError as error:
        raise LoadError(f"{path}: {error}") from None
    for number, record in records.items():
        _require_order(record, path, number)
    return header, list(records.values())


def _lines(file: Any, path: Path) -> Iterator[tuple[int, bytes]]:
    for number in range(2, MAX_RECORDS + 2):
        line = file.readline(MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            if len(line) == MAX_LINE_BYTES:
                raise LoadError(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes")
            return
        if line.strip():
            yield number, line
    raise LoadError(f"{path}: more than {MAX_RECORDS} requests")


def _checked(adapter: TypeAdapter[Any], line: bytes, path: Path, number: int) -> Any:
    try:
        return adapter.validate_python(json_value(decoded(line), finite=False))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(key) for key in first["loc"]) or "the line"
        shown = repr(first["input"])[:80]
        raise LoadError(f"{path}, line {number}: {where}: {first['msg']}, not {shown}") from None
    except ValueError as error:
        raise LoadError(f"{path}, line {number}: {error}") from None


def _require_order(record: Record, path: Path, number: int) -> None:
    times = (record.sent_ms, *record.chunks_ms, record.end_ms)
    if any(after < before for before, after in pairwise(times)):
        raise LoadError(f"{path}, line {number}: sent_ms, chunks_ms and end_ms must not go back in time")
    if record.error is None and not record.chunks_ms:
        raise LoadError(f"{path}, line {number}: a request without an error must have chunks_ms")
