"""How commands end: their exit statuses, and errors as one message."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

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
    """Our errors as one message on stderr, and before anything else the lack of the extra `bench`."""
    if missing := [name for name in _BENCH_PACKAGES if find_spec(name) is None]:
        needed = f"benchmarks need {', '.join(missing)}: pip install 'eft-server[bench]'"
        raise fail(needed, EXIT_WRONG_INPUT)
    try:
        yield
    except EftError as error:
        raise fail(error, EXIT_WRONG_INPUT) from error
