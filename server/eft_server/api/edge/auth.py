"""Bearer API keys, compared in constant time."""

import hashlib
import hmac
from collections.abc import Sequence, Set

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from eft_server.api.edge.admission import path_of
from eft_server.api.edge.api_error import ApiError
from eft_server.api.serving.current import current

__all__ = ["ApiKeyAuth"]


class ApiKeyAuth:
    """ASGI middleware: every path but the open ones needs ``Authorization: Bearer <key>``.

    Args:
        app: The application behind it.
        keys: The accepted keys.
        open_paths: What needs no key: hosts' probes, and the files of the playground.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: Set[str]) -> None:
        self.app = app
        self._open_paths = open_paths
        self._digests = tuple(_digest(key) for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "http" and path_of(scope) not in self._open_paths:
            key = self._admitted(scope)
            if key is None:
                await _refusal("authorization" in Headers(scope=scope)).response()(scope, receive, send)
                return
            current().key = key
        await self.app(scope, receive, send)

    def _admitted(self, scope: Scope) -> str | None:
        """A short digest of the key, None if it is not accepted."""
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        digest = _digest(key.strip())
        # Every key is compared, even if an earlier one matches: the time taken reveals nothing.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex()[:16] if scheme.lower() == "bearer" and any(matches) else None


def _refusal(given: bool) -> ApiError:
    header = "send the header 'Authorization: Bearer <key>'"
    message = f"This is not one of this server's API keys: {header} with one of them."
    if not given:
        message = f"This server needs an API key: {header}."
    return ApiError(message, status=401, headers={"WWW-Authenticate": "Bearer"})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8")).digest()
