"""The simulation injects thousands of faults: what the kernel logs about them is of no interest here."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("agent_platform")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)
