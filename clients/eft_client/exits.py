"""How commands end: their exit statuses, and errors as one message."""

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import typer

from eft_client.errors import EftError
from eft_client.text import printable

__all__ = [
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_WRONG_INPUT",
    "errors_in_words",
    "fail",
    "output_in_words",
    "require_bench",
    "require_packages",
    "require_probe",
    "resumed_by_running_again",
]

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE)
_BENCH_PACKAGES = ("jinja2", "matplotlib", "numpy", "regex")
_PROBE_PACKAGES = ("jinja2", "matplotlib", "numpy", "scipy", "sklearn")
_INSTALL_ADVICE = "pip install 'eft-server[bench]', or in a clone: make install-bench"


def fail(message: object, code: int) -> typer.Exit:
    """Report an error on stderr; returns what to raise then."""
    typer.echo(f"error: {printable(str(message))}", err=True)
    return typer.Exit(code)


def require_bench(*packages: str) -> None:
    """End the command where a package is missing that the next step needs, by default any of the extra `bench`."""
    missing = [name for name in _BENCH_PACKAGES if find_spec(name) is None]
    if not set(missing).isdisjoint(packages or _BENCH_PACKAGES):
        raise fail(f"benchmarks need {', '.join(missing)}: {_INSTALL_ADVICE}", EXIT_WRONG_INPUT)


def require_probe() -> None:
    """End the command where a package of the extra `probe` is missing."""
    require_packages("probes need", _PROBE_PACKAGES, "probe", "install-bench")


def require_packages(who: str, packages: Sequence[str], extra: str, target: str) -> None:
    """End the command where a package is missing, and say which extra, or target of make, installs it."""
    if missing := [name for name in packages if find_spec(name) is None]:
        advice = f"pip install 'eft-server[{extra}]', or in a clone: make {target}"
        raise fail(f"{who} {', '.join(missing)}: {advice}", EXIT_WRONG_INPUT)


@contextmanager
def resumed_by_running_again() -> Iterator[None]:
    """End the command where it is interrupted, and say that it keeps what it has."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted: run the same command again to resume", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def errors_in_words(*others: type[Exception]) -> Iterator[None]:
    """Our errors, and others that are expected, as one message on stderr; a defect keeps its traceback."""
    errors: tuple[type[Exception], ...] = (EftError, *others)
    try:
        yield
    except errors as error:
        raise fail(error, EXIT_WRONG_INPUT) from error


@contextmanager
def output_in_words() -> Iterator[None]:
    """Say in one line that nothing more can be written, as to a full disk, and end with a failure.

    Otherwise the write would end in a traceback, and Python in another one when it exits.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if error.errno not in _FULL or isinstance(error, EftError):
            raise
        # What could not be written is still there, and is written once more at the very end.
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            typer.echo(f"error: the output cannot be written: {error.strerror}", err=True)
        sys.exit(EXIT_FAILED)
