"""A run from its options to its folder: the file of records while it runs, then tables, report and summary."""

import asyncio
import json
import os
import platform
import re
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from eft_client.exits import EXIT_FAILED, EXIT_INTERRUPTED
from eft_client.load.arrivals import Trace
from eft_client.load.errors import LoadError, NothingAnswered
from eft_client.load.options import DEFAULT_REQUESTS, LoadOptions, read_limits
from eft_client.load.output.page import write_report
from eft_client.load.output.tables import print_tables
from eft_client.load.prompts import FromFile, Synthetic
from eft_client.load.records import Header, Record, read_records, write_header, write_record
from eft_client.load.run import Round, Run
from eft_client.load.statistics.comparison import Comparison, compare
from eft_client.load.targets import Target
from eft_client.progress import Progress
from eft_client.settings import Setting
from eft_client.text import printable

__all__ = ["measure", "remake"]

#: Names and passwords in URLs do not belong in a report.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")


def measure(options: LoadOptions, goodput: list[str], output: Path) -> int:
    """Run, print the tables and write the folder; returns the exit status.

    Raises:
        LoadError: A limit of goodput is not one.
        NothingAnswered: A server answers nothing at all.
    """
    now = datetime.now(UTC)
    header = _header(options, read_limits(goodput), now)
    folder = _folder(output, now)
    records: list[Record] = []
    with (folder / "raw.jsonl").open("w", encoding="utf-8") as file:
        write_header(file, header)

        def keep(record: Record) -> None:
            records.append(record)
            write_record(file, record)

        try:
            interrupted = asyncio.run(_play(options, keep))
        except (LoadError, NothingAnswered):
            file.close()
            _discard(folder, records)
            raise
    return _report(compare(header, records), folder, interrupted=interrupted)


def remake(raw: Path, baseline: str | None, goodput: list[str]) -> int:
    """Make an earlier run's tables, report and summary again, with another baseline or limits if they are given.

    Raises:
        LoadError: The file is no run's, or the baseline is not in it.
    """
    header, records = read_records(raw)
    if baseline is not None and baseline not in header.contestants:
        raise LoadError(f"--baseline {baseline!r} is none of the targets: {', '.join(header.contestants)}")
    limits = read_limits(goodput) if goodput else header.limits
    header = replace(header, baseline=baseline or header.baseline, limits=limits)
    return _report(compare(header, records), raw.parent, interrupted=False)


async def _play(options: LoadOptions, keep: Callable[[Record], None]) -> bool:
    """Play all rounds; whether somebody interrupted them. A second Ctrl-C ends the program at once."""
    loop = asyncio.get_running_loop()
    with Progress() as progress:
        async with Run(options, keep, _Shown(options, progress)) as run:

            def interrupt() -> None:
                loop.remove_signal_handler(signal.SIGINT)
                run.interrupt()

            loop.add_signal_handler(signal.SIGINT, interrupt)
            try:
                await run.play()
            finally:
                loop.remove_signal_handler(signal.SIGINT)
            return run.interrupted


class _Shown:
    """Shows how many rounds are over, and in words which one is played and how many requests of it are over."""

    def __init__(self, options: LoadOptions, progress: Progress) -> None:
        self._options = options
        rounds = len(options.targets) * len(options.loads) * options.repeats
        self._stage = progress.begin("rounds", rounds)
        self._begun = self._over = self._failed = 0
        self._planned: int | None = None
        self._warm_up = True
        self._words = ""

    def begin(self, round_: Round, planned: int | None) -> None:
        """See `RoundWatcher.begin`."""
        self._begun += not round_.warm_up
        self._planned, self._warm_up = planned, round_.warm_up
        self._over = self._failed = 0
        self._words = f"{round_.target.name}, {round_.label}"
        if not round_.warm_up and self._options.repeats > 1:
            self._words += f", repeat {round_.repeat + 1} of {self._options.repeats}"
        self._stage.reach(max(0, self._begun - 1), self._words, tell=True)

    def count(self, record: Record) -> None:
        """See `RoundWatcher.count`."""
        self._over += 1
        self._failed += record.error is not None
        share = 0.0
        if not self._warm_up:
            share = self._over / self._planned if self._planned else self._share_of_time(record)
        failed = f", {self._failed} failed" if self._failed else ""
        of = f"/{self._planned}" if self._planned else ""
        done = max(0, self._begun - 1) + min(share, 1.0)
        self._stage.reach(done, f"{self._words}, {self._over}{of} requests{failed}")

    def _share_of_time(self, record: Record) -> float:
        return record.end_ms / 1000 / (self._options.duration_s or 1.0)


def _report(comparison: Comparison, folder: Path, *, interrupted: bool) -> int:
    print_tables(comparison, Console())
    written = write_report(comparison, folder)
    print(f"Report: {written.page}\nFigures: {written.summary}\nTime stamps: {folder / 'raw.jsonl'}")
    if interrupted:
        return EXIT_INTERRUPTED
    answered = any(record.error is None for one in comparison.outcomes for record in one.records)
    return 0 if answered else EXIT_FAILED


def _folder(output: Path, now: datetime) -> Path:
    """A new folder, named after the time."""
    for number in range(100):
        folder = output / f"load-{now:%Y%m%dT%H%M%S}{f'-{number}' if number else ''}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise LoadError(f"--output {output}: {error}") from None
        return folder
    raise LoadError(f"--output {output}: no room for another run of this second")


def _discard(folder: Path, records: list[Record]) -> None:
    """Remove the folder of a run that measured nothing."""
    if all(record.warm_up for record in records):
        (folder / "raw.jsonl").unlink()
        folder.rmdir()


def _header(options: LoadOptions, limits: dict[str, float], now: datetime) -> Header:
    return Header(
        when=now.isoformat(timespec="seconds"),
        # What is typed may hold a file's name that is not UTF-8.
        command=printable(_CREDENTIALS.sub("", shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        workload=_workload(options),
        contestants={one.name: _CREDENTIALS.sub("", _asks(one)) for one in options.targets},
        loads=[load.label for load in options.loads],
        baseline=options.baseline,
        limits=limits,
    )


def _workload(options: LoadOptions) -> dict[str, str | int | float | None]:
    """What is asked, by name, for people."""
    prompts = options.prompts
    workload: dict[str, str | int | float | None] = {"endpoint": options.endpoint}
    if isinstance(prompts, Synthetic):
        for name, lengths in (
            ("input tokens", prompts.input_tokens),
            ("output tokens", prompts.output_tokens),
        ):
            workload[name] = f"{lengths.mean} ± {100 * lengths.spread:g} %"
    elif isinstance(prompts, FromFile):
        workload["prompts"] = (
            f"{len(prompts.prompts)} from a file{', made distinct' if prompts.distinct else ''}"
        )
        workload["output tokens"] = options.max_tokens
    requests = "all arrivals" if all(isinstance(load, Trace) for load in options.loads) else DEFAULT_REQUESTS
    workload["requests a round"] = (
        f"{options.duration_s:g} s" if options.duration_s else options.requests or requests
    )
    workload["temperature"] = options.temperature
    workload["further fields"] = json.dumps(dict(options.body))
    return workload | {"repeats": options.repeats, "warm-up": options.warm_up, "seed": options.seed}


def _asks(target: Target) -> str:
    if len(target.parts) == 1:
        return _asks_setting(target.parts[0].setting)
    return "; ".join(f"{part.share:g} × {_asks_setting(part.setting)}" for part in target.parts)


def _asks_setting(setting: Setting) -> str:
    behaviour = f" with {json.dumps(dict(setting.eft))}" if setting.eft else ""
    return f"{setting.model or 'the first model'} at {setting.url}{behaviour}"
