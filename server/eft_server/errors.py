"""The exceptions of the server.

EftError
├── ConfigError           (ValueError)  the family file or an option is wrong
├── FamilyError           (ValueError)  the checkpoints cannot serve as one family
├── BatchError            (ValueError)  the files of a batch cannot be used
└── BehaviourError        (ValueError)  a request's behaviour cannot be served
    └── UnknownModelError               a request names a model that is not served
"""

from collections.abc import Mapping

from typing_extensions import override

__all__ = [
    "BatchError",
    "BehaviourError",
    "ConfigError",
    "EftError",
    "FamilyError",
    "UnknownModelError",
    "shown",
]


class EftError(Exception):
    """Root of every error that the server raises on purpose."""


class ConfigError(EftError, ValueError):
    """A family file or an option is wrong; the message names the place, the value and what is allowed."""


class FamilyError(EftError, ValueError):
    """The members' checkpoints are missing, unsupported or do not agree on what a token id means."""


class BatchError(EftError, ValueError):
    """A batch's input or output cannot be used; the message names the file and the line."""


class BehaviourError(EftError, ValueError):
    """A request's behaviour cannot be served.

    Attributes:
        param: The request field at fault, such as ``eft.weights.helpful``.
    """

    def __init__(self, message: str, param: str) -> None:
        # Both go into args, because that is what pickle rebuilds an exception from.
        super().__init__(message, param)
        self.param = param

    @override
    def __str__(self) -> str:
        return str(self.args[0])


class UnknownModelError(BehaviourError):
    """The request names a model that this server does not serve."""


def shown(value: object) -> str:
    """A short, printable form of any offending value."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str):
        return repr(value if len(value) <= 64 else value[:61] + "...")
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge integer"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "an object"
    return "an array" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
