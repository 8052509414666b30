"""The stores that every contract test runs on."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from infra.local.embedded import EmbeddedStack
from tests.contract import stores
from tests.contract.stores import Backend


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def memory_backend() -> AsyncIterator[Backend]:
    async with stores.memory() as backend:
        yield backend


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_backend(services: EmbeddedStack) -> AsyncIterator[Backend]:
    async with stores.postgres(services) as backend:
        yield backend


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.services)])
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.getfixturevalue(f"{request.param}_backend")
    return found
