"""Rules that no linter has: what a decision may not touch, and what a module may not be called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("bus", "gateway", "handlers", "infra", "outbox", "projections", "schemas")

IMPURE_MODULES = frozenset({"random", "secrets", "time", "os", "io", "socket", "subprocess", "threading", "asyncio"})
IMPURE_CALLS = frozenset(
    {
        "datetime.now",
        "datetime.utcnow",
        "datetime.today",
        "date.today",
        "uuid.uuid1",
        "uuid.uuid4",
        "uuid1",
        "uuid4",
        "open",
        "input",
        "print",
        "exec",
        "eval",
    }
)
NAMES_THAT_SAY_NOTHING = frozenset(
    {"utils", "util", "helpers", "helper", "common", "base", "misc", "manager", "service"}
)


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def decisions() -> list[Path]:
    """The modules that decide and fold: all of handlers but the steps, projections and schemas."""
    packages = ("handlers", "projections", "schemas")
    return [path for name in packages for path in sorted((ROOT / name).rglob("*.py")) if "steps" not in path.parts]


def impurities(source: str) -> list[str]:
    """What in a module depends on more than its arguments: a clock, chance, the world outside, an await."""
    return [found for node in ast.walk(ast.parse(source)) for found in _impure(node)]


def _impure(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (f"{node.lineno}: import {n.name}" for n in names if n.name.split(".")[0] in IMPURE_MODULES)
        case ast.ImportFrom(module=str(module)) if module.split(".")[0] in IMPURE_MODULES:
            yield f"{node.lineno}: from {module} import"
        case ast.ImportFrom(module="uuid", names=names):
            yield from (f"{node.lineno}: from uuid import {n.name}" for n in names if n.name in IMPURE_CALLS)
        case ast.Call(func=func) if _dotted(func) in IMPURE_CALLS:
            yield f"{node.lineno}: {_dotted(func)}()"
        case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
            yield f"{node.lineno}: {type(node).__name__}"


def _dotted(func: ast.expr) -> str:
    """The last two names of what is called: `datetime.datetime.now` is `datetime.now`."""
    match func:
        case ast.Name(id=name):
            return name
        case (
            ast.Attribute(value=ast.Name(id=owner), attr=name)
            | ast.Attribute(value=ast.Attribute(attr=owner), attr=name)
        ):
            return f"{owner}.{name}"
    return ""


PRINTERS = {
    "infra/cli/terminal.py": "prints for all commands, escaped",
    "infra/local/console.py": "makes the console that escapes",
    "infra/telemetry/logs.py": "writes the log, escaped",
    "infra/history/replay/destinations.py": "writes lines of JSON that are escaped",
    "infra/bench/peers/process.py": "answers the process that started it, by a pipe",
}
"""Who may reach a terminal or a log but by these."""


def printing(source: str) -> list[str]:
    """What in a module prints by itself: text of strangers would come out as it is."""
    return [found for node in ast.walk(ast.parse(source)) for found in _prints(node)]


def _prints(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(func=ast.Name(id="print" | "echo" | "secho" | "Console" | "pprint" as name)):
            yield f"{node.lineno}: {name}()"
        case ast.Call(func=ast.Attribute(attr="echo" | "secho" | "print_exc" | "Console" | "basicConfig" as name)):
            yield f"{node.lineno}: .{name}()"
        case ast.ClassDef(bases=bases):
            yield from (
                f"{node.lineno}: a Console" for base in bases if isinstance(base, ast.Name) and base.id == "Console"
            )
        case ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr" | "__stdout__" | "__stderr__" as name):
            yield f"{node.lineno}: sys.{name}"
        case ast.ImportFrom(module="sys", names=names):
            yield from (f"{node.lineno}: from sys import {n.name}" for n in names if n.name in ("stdout", "stderr"))
        case ast.ImportFrom(module="rich", names=names):
            yield from (f"{node.lineno}: from rich import {n.name}" for n in names if n.name == "print")


def sentence_problem(source: str) -> str | None:
    """What is wrong with a module's first line: it must be a docstring whose first line is one sentence."""
    docstring = ast.get_docstring(ast.parse(source))
    if not docstring:
        return "no docstring"
    first = docstring.splitlines()[0]
    return None if first.endswith((".", ":")) and len(first) > 10 else f"not a sentence: {first!r}"
