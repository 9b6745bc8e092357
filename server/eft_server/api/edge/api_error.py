"""An error on the wire, in OpenAI's shape. Imports no vLLM: `eft serve --supervise` answers with it, too."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from eft_server.api.edge.metrics import count_error

__all__ = ["ApiError"]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    504: "timeout_error",
}
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "too_many_requests",
    500: "internal_error",
    503: "unavailable",
    504: "timeout",
}
for _status, _code in (*_CODES.items(), (400, "invalid_behaviour"), (404, "model_not_found")):
    count_error(_status, _code, times=0)  # A rate sees the first one only where there was a 0 before.

_MAX_MESSAGE_CHARS = 2000


class ApiError(Exception):
    """A refusal or a failure with its HTTP status; the message says what was wrong and what is allowed.

    Attributes:
        status: The HTTP status.
        param: The request field at fault, if one is.
        code: A short name for programs; by default it follows from the status.
        headers: Additional response headers.
        counted: Whether /metrics counts it: all but answers to probes.
    """

    counted = True

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code or _CODES.get(status, "invalid_request")
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON document for the client."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": _sendable(str(self)),
            "type": _TYPES.get(self.status, fallback),
            "param": self.param and _sendable(self.param),
            "code": self.code,
        }
        return {"error": error}

    def response(self) -> JSONResponse:
        """The error as an HTTP response, which is counted."""
        if self.counted:
            count_error(self.status, self.code)
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def _sendable(text: str) -> str:
    """Bound the length, and replace what UTF-8 cannot carry."""
    if len(text) > _MAX_MESSAGE_CHARS:
        text = text[:_MAX_MESSAGE_CHARS] + "…"
    return text.encode("utf-8", "replace").decode("utf-8")
