"""Fixtures that every test may ask for."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from infra.local.embedded import EmbeddedStack
from infra.settings import PREFIX
from tests.schedule import FromBothEnds, ordered

# No example is too slow: that is the machine's doing.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("patient")


def pytest_configure() -> None:
    """What is set in the developer's shell must not decide whether a test passes."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for servers is marked so, by itself; then everything is put into the order of tests/schedule.py."""
    for item in items:
        if "services" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.services)
    items[:] = ordered(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FromBothEnds:
    return FromBothEnds(config, log)


@pytest.fixture(scope="session")
def services() -> Iterator[EmbeddedStack]:
    """Postgres and Kafka for all tests of this process, in a folder of their own; gone at its end."""
    folder = Path(tempfile.mkdtemp(prefix="ap-test-"))
    stack = EmbeddedStack(folder)
    try:
        asyncio.run(stack.start())
        yield stack
    finally:
        asyncio.run(stack.stop())
        shutil.rmtree(folder, ignore_errors=True)
