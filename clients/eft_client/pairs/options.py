"""The options of commands that start an engine or ask a server, which `opened` takes."""

from typing import Annotated

import typer

__all__ = ["SERVER_PANEL", "ApiKeyEnv", "Overrides", "ServedFamily"]

SERVER_PANEL = "Engine or server"

ServedFamily = Annotated[
    str | None,
    typer.Option(
        help="Family to ask a server for. Default: the first that it lists.", rich_help_panel=SERVER_PANEL
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        metavar="VARIABLE",
        help="Environment variable with the server's API key. Default: EFT_API_KEY, else OPENAI_API_KEY.",
        rich_help_panel=SERVER_PANEL,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the family file; may be repeated.",
        rich_help_panel=SERVER_PANEL,
    ),
]
