"""No deadline of a test decides on a slow machine: each goes through `patient`, and no elapsed time is asserted."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.lints import ROOT

FUNCTIONS = frozenset({"timeout", "wait_for"})
CLOCKS = frozenset({"time", "monotonic", "perf_counter"})


def modules_of_tests() -> Iterator[Path]:
    """Those whose clock is the machine's: the simulation has its own."""
    yield from (path for path in sorted((ROOT / "tests").rglob("*.py")) if "simulation" not in path.parts)


def deadlines(source: str) -> list[str]:
    """Where a test sets a deadline that does not grow with the machine, or asserts how long something took."""
    return [found for node in ast.walk(ast.parse(source)) for found in _deadline(node)]


def _deadline(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(func=func, args=[*_, ast.Constant(value=int() | float())]) if _name(func) in FUNCTIONS:
            yield f"{node.lineno}: {_name(func)}()"
        case ast.Call(keywords=keywords):
            constant = [each for each in keywords if isinstance(each.value, ast.Constant) and each.value.value]
            yield from (f"{node.lineno}: {each.arg}=" for each in constant if each.arg == "timeout")
        case ast.Assert(test=test):
            calls = [each.func for each in ast.walk(test) if isinstance(each, ast.Call)]
            yield from (f"{node.lineno}: assert {_name(func)}()" for func in calls if _name(func) in CLOCKS)


def _name(func: ast.expr) -> str:
    match func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


@pytest.mark.parametrize("path", list(modules_of_tests()), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_deadline_of_a_test_grows_with_the_machine(path: Path) -> None:
    assert deadlines(path.read_text("utf-8")) == [], "deadlines are `patient(seconds)`, of tests/patience.py"


@pytest.mark.parametrize(
    "line",
    [
        "asyncio.timeout(5)",
        "asyncio.wait_for(x(), 0.5)",
        "child.wait(timeout=5)",
        "subprocess.run(['x'], timeout=60.0)",
        "assert time.monotonic() - began < 3",
    ],
)
def test_a_fixed_deadline_is_noticed(line: str) -> None:
    assert len(deadlines(line)) == 1


@pytest.mark.parametrize("line", ["asyncio.timeout(patient(5))", "run(timeout=patient(5))", "run(timeout=None)"])
def test_a_patient_deadline_is_left_alone(line: str) -> None:
    assert deadlines(line) == []
