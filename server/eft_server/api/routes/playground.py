"""GET /playground and its files: a page that shows what each expert did to each token."""

from functools import cache

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from eft_server.api.serving.service import service_of
from eft_server.playground.assets import PAGE, Asset, assets

__all__ = ["PATH", "paths", "router"]

PATH = "/playground"

router = APIRouter(include_in_schema=False)

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # A browser asks each time whether a file is still the same: a new version of the server shows at once.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


@cache
def _table() -> dict[str, Asset]:
    """Every path with what it serves; there are no others."""
    return {PATH if name == PAGE else f"{PATH}/{name}": asset for name, asset in assets().items()}


def paths() -> frozenset[str]:
    """What needs no API key: the page and its files, which hold nothing of the operator's."""
    return frozenset({*_table(), f"{PATH}/"})


@router.head(f"{PATH}/")
@router.get(f"{PATH}/")
async def with_slash(raw: Request) -> Response:
    """Lead to the page, whose links are relative to a path without the slash."""
    _require_enabled(raw)
    return Response(status_code=308, headers={"Location": f"..{PATH}"})


@router.head(PATH)
@router.get(PATH)
@router.head(f"{PATH}/{{name:path}}")
@router.get(f"{PATH}/{{name:path}}")
async def playground(raw: Request, name: str = "") -> Response:
    """The page, or one of its files."""
    _require_enabled(raw)
    asset = _table().get(f"{PATH}/{name}" if name else PATH)
    if asset is None:
        raise HTTPException(404)
    return _answer(raw, asset)


def _answer(raw: Request, asset: Asset) -> Response:
    gzipped = _accepts_gzip(raw.headers.get("accept-encoding", ""))
    etag = asset.gzipped_etag if gzipped else asset.etag
    headers = {**_HEADERS, "ETag": etag}
    if etag in (tag.strip().removeprefix("W/") for tag in raw.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    if gzipped:
        headers["Content-Encoding"] = "gzip"
    content = asset.gzipped if gzipped else asset.content
    if raw.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(len(content))}, media_type=asset.media_type)
    return Response(content, headers=headers, media_type=asset.media_type)


def _accepts_gzip(header: str) -> bool:
    """Whether a client takes gzip, by its Accept-Encoding."""
    for part in header.lower().split(","):
        name, _, parameters = part.partition(";")
        if name.strip() == "gzip":
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _require_enabled(raw: Request) -> None:
    if not service_of(raw).config.server.playground:
        raise HTTPException(404)
