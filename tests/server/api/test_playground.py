"""The playground's page and files: what is served to whom, and what is in the package."""

import gzip
import hashlib
import json
import re
import zlib
from importlib.resources import files
from posixpath import dirname, join, normpath

import httpx
import pytest

from eft_server.api.app import create_app
from eft_server.playground.assets import PAGE, assets

from .fake_engine import FakeEngine
from .served import client_of, family

FILES = sorted(assets())
SCRIPTS = [name for name in FILES if name.startswith("js/")]
LARGEST_WHEEL_BYTES = 250_000
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}


def path_to(name: str) -> str:
    return "/playground" if name == PAGE else f"/playground/{name}"


def text_of(name: str) -> str:
    return assets()[name].content.decode()


HASHES = json.loads(text_of("vendor/hashes.json"))


@pytest.mark.parametrize("name", FILES)
async def test_every_file_is_served_as_it_is_and_may_load_nothing_from_elsewhere(
    client: httpx.AsyncClient, name: str
) -> None:
    response = await client.get(path_to(name), headers={"accept-encoding": "identity"})
    assert response.status_code == 200
    assert response.content == (files("eft_server.playground") / "static" / name).read_bytes()
    policy = response.headers["content-security-policy"].split("; ")
    assert dict(part.split(" ", 1) for part in policy) == POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (PAGE, "text/html; charset=utf-8"),
        ("js/main.js", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        ("vendor/licences/htm.txt", "text/plain; charset=utf-8"),
        ("vendor/hashes.json", "application/json"),
    ],
)
async def test_each_kind_of_file_has_its_media_type(client: httpx.AsyncClient, name: str, kind: str) -> None:
    assert (await client.get(path_to(name))).headers["content-type"] == kind


async def test_a_browser_that_takes_gzip_gets_it_and_the_same_bytes(client: httpx.AsyncClient) -> None:
    path = path_to("js/main.js")
    whole = await client.get(path, headers={"accept-encoding": "identity"})
    async with client.stream("GET", path, headers={"accept-encoding": "br, gzip;q=0.8"}) as packed:
        content = b"".join([part async for part in packed.aiter_raw()])
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(content) == whole.content
    assert len(content) < len(whole.content) / 2
    assert whole.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
    assert whole.headers["etag"] != packed.headers["etag"]


@pytest.mark.parametrize("accepted", ["", "br", "gzip;q=0", "gzip; q=0.0", "xgzip"])
async def test_others_get_it_as_it_is(client: httpx.AsyncClient, accepted: str) -> None:
    response = await client.get(path_to("style.css"), headers={"accept-encoding": accepted})
    assert "content-encoding" not in response.headers
    assert response.text == text_of("style.css")


@pytest.mark.parametrize("accepted", ["identity", "gzip"])
async def test_what_a_browser_has_is_not_sent_again(client: httpx.AsyncClient, accepted: str) -> None:
    headers = {"accept-encoding": accepted}
    etag = (await client.get("/playground", headers=headers)).headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        again = await client.get("/playground", headers=headers | {"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
        assert "content-security-policy" in again.headers
    assert (
        await client.get("/playground", headers=headers | {"if-none-match": '"other"'})
    ).status_code == 200


async def test_etags_follow_the_content() -> None:
    assert len({asset.etag for asset in assets().values()}) == len({a.content for a in assets().values()})


@pytest.mark.parametrize("name", [PAGE, "js/main.js"])
async def test_head_has_the_headers_of_get(client: httpx.AsyncClient, name: str) -> None:
    got, head = await client.get(path_to(name)), await client.head(path_to(name))
    assert head.content == b""
    assert head.status_code == 200
    for header in ("etag", "content-type", "content-length", "content-security-policy"):
        assert head.headers[header] == got.headers[header]


@pytest.mark.parametrize(
    "path",
    [
        "/playground/index.html",
        "/playground/nothing.js",
        "/playground/js",
        "/playground/js/",
        "/playground//js/main.js",
        "/playground/../playground/assets.py",
        "/playground/..%2fassets.py",
        "/playground/%2e%2e/assets.py",
        "/playground/js/..%2F..%2F..%2Fassets.py",
        "/playground/js%5Cmain.js",
        "/playground/js/main.js%00",
        "/playgrounds",
    ],
)
async def test_no_other_name_is_served(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


async def test_only_get_and_head_are_answered(client: httpx.AsyncClient) -> None:
    response = await client.post("/playground", json={})
    assert response.status_code == 405
    assert response.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/playground", "/playground/", "/playground/js/main.js"])
async def test_an_operator_can_switch_it_off(engine: FakeEngine, path: str) -> None:
    async with client_of(create_app(engine, family(playground=False))) as client:
        response = await client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("on", [True, False])
async def test_it_needs_no_key_unless_it_is_off_and_what_it_asks_does(engine: FakeEngine, on: bool) -> None:
    async with client_of(create_app(engine, family(playground=on), api_keys=("key",))) as client:
        for name in FILES:
            assert (await client.get(path_to(name))).status_code == (200 if on else 401)
        for path in ("/v1/models", "/playground/nothing.js", "/playground/../v1/models", "/playgrounds"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post("/v1/eft/explain", json={})).status_code == 401


@pytest.mark.parametrize("prefix", ["", "/some/prefix"])
async def test_it_works_below_a_prefix_and_with_a_slash_behind_it(engine: FakeEngine, prefix: str) -> None:
    application = create_app(engine, family(), api_keys=("key",))
    transport = httpx.ASGITransport(app=application, root_path=prefix)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        slash = await client.get(f"{prefix}/playground/")
        assert slash.status_code == 308
        page = await client.get(slash.url.join(slash.headers["location"]))
        assert page.url.path == f"{prefix}/playground"
        links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
        assert len(links) > 5
        for link in links:
            assert (await client.get(page.url.join(link))).status_code == 200, link


def imports_of(name: str) -> set[str]:
    """What a module imports at once, by name."""
    found = re.findall(
        r'^(?:import|export)\b[^;]*? from "([^"]+)"|^import "([^"]+)"', text_of(name), re.MULTILINE
    )
    return {normpath(join(dirname(name), one or other)) for one, other in found}


def needed_by(name: str) -> set[str]:
    found: set[str] = set()
    waiting = {name}
    while waiting:
        found |= waiting
        waiting = set().union(*map(imports_of, waiting)) - found
    return found


def test_the_page_names_every_module_that_it_needs_at_once() -> None:
    preloaded = re.findall(r'rel="modulepreload" href="playground/([^"]+)"', text_of(PAGE))
    assert sorted(preloaded) == sorted(needed_by("js/main.js"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_modules_import_what_is_there(name: str) -> None:
    later = re.findall(r'import\("([^"]+)"\)', text_of(name))
    assert imports_of(name) | {normpath(join(dirname(name), path)) for path in later} <= set(FILES)


@pytest.mark.parametrize("name", [*SCRIPTS, *(f"vendor/{row['file']}" for row in HASHES)])
def test_no_script_makes_code_or_markup_of_text(name: str) -> None:
    text = text_of(name)
    assert not re.search(r"\beval\(|\bnew Function\b|\bdocument\.write\b", text)
    if name in SCRIPTS:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\bstyle=(?!\$\{\{)[\"'$]", text)


def test_the_page_has_no_script_and_no_style_in_it() -> None:
    page = text_of(PAGE)
    assert not re.search(r"<style|\bstyle=|<script(?![^>]* src=)|\bon\w+=", page)


@pytest.mark.parametrize("row", HASHES, ids=lambda row: row["file"])
def test_libraries_are_the_published_ones_and_have_their_licences(row: dict[str, str]) -> None:
    assert hashlib.sha256(assets()[f"vendor/{row['file']}"].content).hexdigest() == row["sha256"]
    assert row["licences"] and all(f"vendor/{licence}" in FILES for licence in row["licences"])


def test_every_file_of_a_library_is_in_the_list_of_hashes() -> None:
    listed = {f"vendor/{row['file']}" for row in HASHES}
    assert listed == {name for name in FILES if name.startswith("vendor/") and name.endswith((".js", ".css"))}


def test_the_wheel_grows_by_little() -> None:
    packed = sum(len(zlib.compress(asset.content)) for asset in assets().values())
    assert 0 < packed < LARGEST_WHEEL_BYTES
    assert sum(len(asset.content) for asset in assets().values()) < 2 * LARGEST_WHEEL_BYTES
