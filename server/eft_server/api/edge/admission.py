"""Whether requests are let in: none is while the server is stopping, or its engine does not answer. Pure ASGI."""

from starlette.types import ASGIApp, Receive, Scope, Send

from eft_server.api.edge.deadlines import UnderWay

__all__ = ["OPERATORS_PATHS", "PROBES", "Admission", "path_of"]

PROBES = frozenset({"/health", "/livez", "/readyz"})
"""What hosts ask; no API key is needed."""

OPERATORS_PATHS = PROBES | {"/metrics", "/version"}
"""What is answered in any state."""


class Admission:
    """ASGI middleware: counts the requests under way, and refuses new ones while `under_way` says so."""

    def __init__(self, app: ASGIApp, *, under_way: UnderWay) -> None:
        self.app = app
        self._under_way = under_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with the refusal."""
        if scope["type"] != "http" or path_of(scope) in OPERATORS_PATHS:
            await self.app(scope, receive, send)
            return
        with self._under_way.one_more():
            refusal = self._under_way.refusal
            await (self.app if refusal is None else refusal.response())(scope, receive, send)


def path_of(scope: Scope) -> str:
    """The path that routes are compared with: a host may have left its prefix (its `--root-path`) in front."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path") or ""
    rest = path.removeprefix(prefix)
    return rest if not rest or rest.startswith("/") else path
