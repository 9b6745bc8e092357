"""How commands end: their exit statuses, and errors as one message."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from eft_client.errors import EftError
from eft_client.printable import printable

__all__ = ["EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_WRONG_INPUT", "bench_errors_in_words", "fail"]

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130
_BENCH_PACKAGES = ("jinja2", "matplotlib", "numpy")


def fail(message: object, code: int) -> typer.Exit:
    """Tell an error on stderr; what to raise then."""
    typer.echo(f"error: {printable(str(message))}", err=True)
    return typer.Exit(code)


@contextmanager
def bench_errors_in_words() -> Iterator[None]:
    """Our errors, and the lack of the extra `bench`, as one message on stderr; a defect keeps its traceback."""
    try:
        yield
    except EftError as error:
        raise fail(error, EXIT_WRONG_INPUT) from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _BENCH_PACKAGES:
            raise
        needed = "benchmarks need the extra `bench`: pip install 'eft-server[bench]'"
        raise fail(f"{needed} ({error})", EXIT_WRONG_INPUT) from error
