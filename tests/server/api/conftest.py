"""The application over the fake engine, and a client of it."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from eft_server.api.app import create_app

from .api_checkpoint import write_checkpoint
from .fake_engine import FakeEngine
from .served import client_of, family


@pytest.fixture(scope="session")
def built_engine(tmp_path_factory: pytest.TempPathFactory) -> FakeEngine:
    return FakeEngine(write_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def engine(built_engine: FakeEngine) -> FakeEngine:
    built_engine.reset()
    return built_engine


@pytest_asyncio.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(engine, family())) as client:
        yield client
