"""API keys: who may pass, and what a key file may hold."""

from pathlib import Path

import httpx
import pytest

from eft_server.api.app import create_app
from eft_server.api.edge.keys import read_api_keys
from eft_server.errors import ConfigError

from .fake_engine import FakeEngine
from .served import client_of, family


@pytest.fixture
def guarded(engine: FakeEngine) -> httpx.AsyncClient:
    return client_of(create_app(engine, family(), api_keys=("first", "second")))


@pytest.mark.asyncio
@pytest.mark.parametrize("authorization", ["Bearer first", "bearer second"])
async def test_any_of_the_keys_opens_the_server(guarded: httpx.AsyncClient, authorization: str) -> None:
    response = await guarded.get("/v1/models", headers={"authorization": authorization})
    assert response.status_code == 200


@pytest.mark.asyncio
@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ", "Bearer firs", "Basic first", "first"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/docs", "/openapi.json", "/nowhere", "//health"])
async def test_without_a_key_every_path_is_closed(
    guarded: httpx.AsyncClient, path: str, authorization: str
) -> None:
    response = await guarded.get(f"http://server{path}", headers={"authorization": authorization})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("headers", "said"),
    [({}, "needs an API key"), ({"authorization": "Bearer wrong"}, "not one of this server's API keys")],
)
async def test_a_missing_key_and_a_wrong_one_are_told_apart(
    guarded: httpx.AsyncClient, headers: dict[str, str], said: str
) -> None:
    response = await guarded.get("/v1/models", headers=headers)
    assert said in response.json()["error"]["message"] and "Bearer <key>" in response.text


@pytest.mark.asyncio
async def test_health_is_open(guarded: httpx.AsyncClient) -> None:
    assert (await guarded.get("/health")).status_code == 200


def test_a_key_file_holds_a_key_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# team a\nfirst\n\n  second  \n")
    assert read_api_keys(path) == ("first", "second")
    path.write_bytes(b"\xef\xbb\xbffirst\r\nsecond\r\n")
    assert read_api_keys(path) == ("first", "second")


@pytest.mark.parametrize(
    "content", [b"", b"# only a comment\n", b"two words\n", "schlüssel".encode(), b"\xff"]
)
def test_a_key_file_that_would_lock_or_open_the_server_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="key"):
        read_api_keys(path)


def test_a_key_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_api_keys(tmp_path / "nothing")
