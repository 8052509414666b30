"""The rules of lints.py hold, and each of them notices what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture.lints import (
    NAMES_THAT_SAY_NOTHING,
    PRINTERS,
    ROOT,
    decisions,
    impurities,
    modules,
    printing,
    sentence_problem,
)


@pytest.mark.parametrize("path", decisions(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_decision_depends_on_its_arguments_alone(path: Path) -> None:
    assert impurities(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import random",
        "import os.path",
        "from time import monotonic",
        "from uuid import uuid4",
        "x = uuid.uuid4()",
        "x = datetime.now(UTC)",
        "x = datetime.datetime.now()",
        "x = date.today()",
        "open('x')",
        "print(1)",
        "async def f(): pass",
    ],
)
def test_what_is_impure_is_noticed(line: str) -> None:
    assert len(impurities(line)) == 1


@pytest.mark.parametrize(
    "line", ["import uuid", "x = meta.at", "x = events.now", "from uuid import UUID", "row.open()"]
)
def test_what_is_pure_is_left_alone(line: str) -> None:
    assert impurities(line) == []


def test_every_module_says_what_it_is() -> None:
    problems = {str(path.relative_to(ROOT)): sentence_problem(path.read_text("utf-8")) for path in modules()}
    empty = {str(path.relative_to(ROOT)) for path in modules() if not path.read_text("utf-8").strip()}
    assert {name: problem for name, problem in problems.items() if problem and name not in empty} == {}


def test_a_missing_sentence_is_noticed() -> None:
    assert sentence_problem("x = 1") == "no docstring"
    assert sentence_problem('"""Stuff"""') is not None
    assert sentence_problem('"""Lanes: who may write, and in which order."""') is None


def test_no_module_is_called_what_says_nothing() -> None:
    assert [path for path in modules() if path.stem in NAMES_THAT_SAY_NOTHING] == []


@pytest.mark.parametrize("path", list(modules()), ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_prints_but_where_text_is_escaped(path: Path) -> None:
    found = printing(path.read_text("utf-8"))
    assert bool(found) == (str(path.relative_to(ROOT)) in PRINTERS), found


@pytest.mark.parametrize(
    "line",
    [
        "print(x)",
        "typer.echo(x)",
        "click.secho(x)",
        "sys.stdout.write(x)",
        "write = sys.stderr.buffer.write",
        "from sys import stdout",
        "console = Console()",
        "class Mine(Console): pass",
        "console = rich.console.Console()",
        "from rich import print",
        "traceback.print_exc()",
        "logging.basicConfig()",
    ],
)
def test_what_prints_is_noticed(line: str) -> None:
    assert len(printing(line)) == 1


@pytest.mark.parametrize("line", ["say(x)", "console.print(x)", "import sys", "SafeConsole()", "self.print(x)"])
def test_what_does_not_print_is_left_alone(line: str) -> None:
    assert printing(line) == []
