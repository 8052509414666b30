"""A setting that nobody reads does nothing: each is read by what the platform runs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from infra.settings import Settings
from tests.architecture.lints import ROOT, modules

TRIALS = ("infra/bench", "infra/chaos", "infra/settings.py")
"""What they read has no effect on who runs the platform."""


def settings_read(source: str) -> set[str]:
    """The settings that a module reads: attributes of whatever is called `settings`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and _is_settings(node.value)
    }


def _is_settings(value: ast.expr) -> bool:
    match value:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_") in ("settings", "configured")
        case ast.Call(func=func):
            return _called(func) in ("load_settings", "attach", "fill_in", "attached_settings")
        case ast.Await(value=ast.Call(func=func)):
            return _called(func) in ("as_recorded", "check")
    return False


def _called(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def readers() -> list[Path]:
    return [path for path in modules() if not str(path.relative_to(ROOT)).startswith(TRIALS)]


def test_every_setting_is_read() -> None:
    read = set[str]().union(*(settings_read(path.read_text("utf-8")) for path in readers()))
    read |= {name.removeprefix("required_") for name in read}
    assert set(Settings.model_fields) - read == set()


@pytest.mark.parametrize(
    "source", ["settings.x", "self._settings.x", "stage.settings.x + 1", "load_settings().x", "(await check(s)).x"]
)
def test_a_read_is_noticed(source: str) -> None:
    assert settings_read(source) == {"x"}


@pytest.mark.parametrize("source", ["state.x", "settings.x = 1", "x", "getattr(settings, 'x')", "settings()"])
def test_what_is_no_read_counts_for_nothing(source: str) -> None:
    assert settings_read(source) == set()
