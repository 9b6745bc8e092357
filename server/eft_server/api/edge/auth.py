"""Bearer API keys, compared in constant time."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from eft_server.api.edge.admission import PROBES, path_of
from eft_server.api.edge.api_error import ApiError
from eft_server.api.serving.current import current

__all__ = ["ApiKeyAuth"]


class ApiKeyAuth:
    """ASGI middleware: every path but hosts' probes needs ``Authorization: Bearer <key>``."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self._digests = tuple(_digest(key) for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "http" and path_of(scope) not in PROBES:
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
