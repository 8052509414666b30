"""Fixtures of fault tests: a folder with a short path, settings for a stack of its own, and a log of what was said."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.supervisor import Say
from infra.settings import Settings, load_settings

HERE = Path(__file__).parent
LONG = bool(os.environ.get("AP_CHAOS"))
"""Whether to run for minutes, as `make chaos` does."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for marker in ("faults", "platforms", "services", "slow"):
                item.add_marker(marker)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Paths of unix sockets are short, those of pytest's own folders are not."""
    made = Path(tempfile.mkdtemp(prefix="ap-f-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def settings(folder: Path) -> Settings:
    return load_settings(data_dir=folder / "data", gateway_port=0, auth_required=False)


@pytest.fixture
def say() -> Say:
    return lambda text: print(text, flush=True)
