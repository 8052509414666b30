"""A gateway in memory for the tests of its routes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.http.state import Gateway
from infra.settings import Settings
from tests.gateway.world import World, client_of, gateway_over


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def settings() -> Settings:
    return Settings(outcome_wait_seconds=0.2)


@pytest.fixture
def gateway(world: World, settings: Settings) -> Gateway:
    return gateway_over(world, settings)


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(gateway) as client:
        yield client
