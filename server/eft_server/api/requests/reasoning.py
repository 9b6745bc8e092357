"""Reasoning: whether a model thinks before it answers, how hard, and whether the client can read it.

The chat template controls it, so options that the template does not use are refused instead of ignored.
"""

from collections.abc import Collection
from typing import Any

from eft_server.api.edge.api_error import ApiError
from eft_server.api.requests.checks import FieldError, flag, one_of
from eft_server.errors import shown
from eft_server.family.file import ServerOptions

__all__ = [
    "check_effort",
    "check_include_reasoning",
    "check_reasoning",
    "check_template_kwargs",
    "require_readable",
]

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_SWITCH = "enable_thinking"


def check_template_kwargs(value: Any, options: ServerOptions) -> None:
    """Check chat_template_kwargs: enable_thinking, true or false, and nothing else.

    Raises:
        FieldError: It holds something else.
    """
    if not isinstance(value, dict):
        raise FieldError(f"{shown(value)} is not an object with {_SWITCH}")
    for key, setting in value.items():
        if key != _SWITCH:
            raise FieldError(f"a request cannot configure the chat template; known: {_SWITCH}", f".{key}")
        try:
            flag(setting, options)
        except FieldError as error:
            raise FieldError(str(error), f".{key}") from None


check_effort = one_of(*EFFORTS)
"""How hard a model thinks."""


def check_reasoning(value: Any, options: ServerOptions) -> None:
    """Check a response's ``reasoning``: an object with effort.

    Raises:
        FieldError: It holds something else.
    """
    if not isinstance(value, dict):
        raise FieldError(f"{shown(value)} is not an object with effort")
    for key, setting in value.items():
        if setting is None:
            continue
        if key != "effort":
            raise FieldError("not supported; known: effort", f".{key}")
        try:
            check_effort(setting, options)
        except FieldError as error:
            raise FieldError(str(error), ".effort") from None


def check_include_reasoning(value: Any, options: ServerOptions) -> None:
    """Check include_reasoning: leaving reasoning out needs a parser.

    Raises:
        FieldError: It is not true or false, or false without a parser.
    """
    flag(value, options)
    if not value and options.reasoning_parser is None:
        raise FieldError("reasoning needs a parser; the operator has to set server.reasoning_parser")


def require_readable(
    kwargs: dict[str, Any] | None,
    effort: str | None,
    variables: Collection[str],
    effort_param: str = "reasoning_effort",
) -> None:
    """Refuse options that the chat template does not use.

    vLLM passes the effort to the template, and enable_thinking, which is true unless the effort is none.

    Args:
        kwargs: The request's chat_template_kwargs.
        effort: The request's effort.
        variables: The variables that the chat template uses.
        effort_param: The request's field for the effort.

    Raises:
        ApiError: The template does not use one of them.
    """
    if kwargs and _SWITCH not in variables:
        param = f"chat_template_kwargs.{_SWITCH}"
        raise ApiError(f"{param}: the chat template does not use it.", param=param, code="unsupported_field")
    switch_is_enough = effort == "none" and _SWITCH in variables
    if effort is not None and "reasoning_effort" not in variables and not switch_is_enough:
        message = f"{effort_param}: the chat template does not use {effort!r}."
        raise ApiError(message, param=effort_param, code="unsupported_field")
