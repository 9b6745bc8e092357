"""From the command line's options to a chat, and its end."""

import asyncio
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TextIO

from eft_client.chat.screen import Screen
from eft_client.chat.session import SamplingOptions, opened
from eft_client.client import AsyncEftClient
from eft_client.errors import WrongArgument
from eft_client.exits import EXIT_INTERRUPTED
from eft_client.weights import parse_filter, parse_weights

__all__ = ["ChatOptions", "run"]

RETRIES = 2
"""A person at the terminal would rather know soon, and can ask again."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What a chat begins with; None leaves it to the server.

    Attributes:
        url: the server's base URL.
        api_key: its key; None looks in the environment.
        model: the name to ask.
        weights: `expert=number` words.
        scale: the factor on all weights.
        amplify: the factor on the up-scaling delta.
        filter: `expert:TOP_P`, `base:TOP_P` or `off`.
        system: the system message.
        sampling: the attributes of SamplingOptions.
    """

    url: str
    api_key: str | None = None
    model: str | None = None
    weights: str | None = None
    scale: float | None = None
    amplify: float | None = None
    filter: str | None = None
    system: str | None = None
    sampling: Mapping[str, Any]


def run(wishes: ChatOptions) -> int:
    """Chat on the standard streams until the end; the exit status.

    Raises:
        EftError: The server does not answer, or an option cannot be right.
    """
    if sys.stdin is None or sys.stdout is None:
        raise WrongArgument("a chat needs a standard input and a standard output; one of them is closed")
    # What the terminal's encoding lacks is shown as ?, and what was typed in another is still text. Files are UTF-8.
    typed = sys.stdin.isatty()
    _configure(sys.stdin, errors="surrogateescape", encoding=None if typed else "utf-8")
    for stream in (sys.stdout, sys.stderr):
        _configure(stream, errors="replace")
    screen = Screen(sys.stdout, sys.stderr, interactive=typed and sys.stdout.isatty())
    client = AsyncEftClient(wishes.url, wishes.api_key, retries=RETRIES)
    with asyncio.Runner() as runner:
        try:
            return _run(wishes, client, runner, screen)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        finally:
            runner.run(client.aclose())


def _run(wishes: ChatOptions, client: AsyncEftClient, runner: asyncio.Runner, screen: Screen) -> int:
    chat = opened(client, runner, screen, wishes.model, wishes.url)
    changes: dict[str, Any] = {} if wishes.weights is None else {"weights": parse_weights(wishes.weights)}
    factors = {"scale": wishes.scale, "amplify": wishes.amplify}
    changes |= {name: value for name, value in factors.items() if value is not None}
    if wishes.filter is not None:
        changes["filter"] = parse_filter(wishes.filter)
    chat.behaviour = chat.behaviour.changed(changes)
    chat.sampling = SamplingOptions(**wishes.sampling)
    chat.conversation.system = wishes.system
    return chat.run()


def _configure(stream: TextIO, *, errors: str, encoding: str | None = None) -> None:
    with suppress(AttributeError):  # Streams that were replaced need no such care.
        stream.reconfigure(errors=errors, encoding=encoding)  # type: ignore[attr-defined]
