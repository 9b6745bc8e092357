"""The exceptions of the client.

EftError
├── WrongArgument     (ValueError)       refused before anything was sent
├── ConnectionFailed  (ConnectionError)  no connection, or it broke off
├── TimedOut          (TimeoutError)     no answer, or no further piece of one, in time
├── BadAnswer         (ValueError)       what came back is not what the protocol says
└── ServerAnswered                       the server refused, or failed
    ├── BadRequest    (ValueError)       400, 422
    ├── Unauthorised  (PermissionError)  401, 403
    ├── NotFound      (LookupError)      404
    ├── TooLarge      (ValueError)       413
    ├── Busy                             429, 503
    └── ServerFailed                     any other 5xx
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import override

from eft_client.text import shortened

__all__ = [
    "BadAnswer",
    "BadRequest",
    "Busy",
    "ConnectionFailed",
    "EftError",
    "NotFound",
    "ServerAnswered",
    "ServerFailed",
    "TimedOut",
    "TooLarge",
    "Unauthorised",
    "WrongArgument",
    "answered",
    "error_in",
]

MAX_MESSAGE_CHARS = 2000
MAX_NAME_CHARS = 200
_STATUS_OF_TYPE = {"invalid_request_error": 400, "rate_limit_error": 429, "timeout_error": 504}


class EftError(Exception):
    """Root of every error that the client raises on purpose."""


class WrongArgument(EftError, ValueError):
    """An argument that no server would accept; nothing was sent."""


class ConnectionFailed(EftError, ConnectionError):
    """The server could not be reached, or the connection broke before the answer was complete."""


class TimedOut(EftError, TimeoutError):
    """No answer, or no further piece of one, came in time."""


class BadAnswer(EftError, ValueError):
    """The server's answer does not follow the protocol, or is too large."""


class ServerAnswered(EftError):
    """The server answered with an error.

    Attributes:
        status: The HTTP status; of an error inside a stream, the one that it would have had.
        message: The server's message, bounded and safe to print.
        code: The server's short name for it, if it gave one.
        param: The request field at fault, if the server named one.
        request_id: The server's id of the request, if it sent one.
        retry_after_s: How long the server asks to wait, in seconds, if it said.
    """

    def __init__(  # noqa: PLR0913 (what an error says)
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        # All of it goes into args, because that is what pickle rebuilds an exception from.
        super().__init__(status, message, code, param, request_id, retry_after_s)
        self.status = status
        self.message = shortened(message, MAX_MESSAGE_CHARS)
        self.code = code and shortened(code, MAX_NAME_CHARS)
        self.param = param and shortened(param, MAX_NAME_CHARS)
        self.request_id = request_id and shortened(request_id, MAX_NAME_CHARS)
        self.retry_after_s = retry_after_s

    @override
    def __str__(self) -> str:
        return f"{self.status}: {self.message}" + (f" (request {self.request_id})" if self.request_id else "")


class BadRequest(ServerAnswered, ValueError):
    """The request is wrong: a weight out of bounds, an unknown field (400, 422)."""


class Unauthorised(ServerAnswered, PermissionError):
    """The API key is missing, wrong, or not valid for this (401, 403)."""

    # PermissionError is an OSError, which would show errno and strerror.
    __str__ = ServerAnswered.__str__


class NotFound(ServerAnswered, LookupError):
    """There is no such model or path (404)."""


class TooLarge(ServerAnswered, ValueError):
    """The request is larger than the server accepts (413)."""


class Busy(ServerAnswered):
    """The server is too busy now (429, 503); `retry_after_s` is when to retry, if the server said."""


class ServerFailed(ServerAnswered):
    """The server failed (5xx)."""


_KINDS: dict[int, type[ServerAnswered]] = {
    400: BadRequest,
    401: Unauthorised,
    403: Unauthorised,
    404: NotFound,
    413: TooLarge,
    422: BadRequest,
    429: Busy,
    503: Busy,
}


def answered(status: int, message: str, **details: str | float | None) -> ServerAnswered:
    """The error of the kind that the status stands for; `details` are ServerAnswered's other attributes."""
    kind = _KINDS.get(status, ServerFailed if status >= 500 else ServerAnswered)
    return kind(status, message, **details)  # type: ignore[arg-type]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    message: str | None = None
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


def error_in(
    raw: Mapping[str, Any],
    *,
    status: int | None,
    request_id: str | None = None,
    retry_after_s: float | None = None,
) -> ServerAnswered:
    """The error that a JSON body describes, in any of the forms that servers use.

    Args:
        raw: ``{"error": {"message", "type", "param", "code"}}``, or without the outer object, or
            ``{"detail": …}``.
        status: The HTTP status; None for an error in a stream, whose own code or type says.
        request_id: The server's id of the request.
        retry_after_s: How long the server asks to wait.
    """
    inner = raw.get("error", raw)
    try:
        body = _Body.model_validate(inner if isinstance(inner, dict) else {"message": str(inner)})
    except ValidationError:
        body = _Body(message=str(inner))
    if status is None:
        numeric = body.code if isinstance(body.code, int) and 400 <= body.code < 600 else None
        status = numeric or _STATUS_OF_TYPE.get(body.type or "", 500)
    return answered(
        status,
        body.message or str(raw.get("detail") or f"the server sent no error message: {dict(raw)}"),
        code=None if body.code is None else str(body.code),
        param=body.param,
        request_id=request_id,
        retry_after_s=retry_after_s,
    )
