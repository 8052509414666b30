"""The tables of README.md that repeat what the code says: `make readme` writes them, a test compares them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pydantic
import typer.main
from typer.core import TyperGroup, TyperOption

from infra.cli.app import app
from schemas import registry
from schemas.workflow.node_types import ALIASES, NODE_TYPES, NodeConfig

README = Path(__file__).parent.parent / "README.md"


def commands() -> str:
    rows = (
        (f"`{name}`", "yes" if command.public else "", _fields(command, message=True))
        for name, command in sorted(registry.COMMANDS.items())
    )
    return _table(("command", "public", "fields"), rows)


def events() -> str:
    rows = ((f"`{name}`", _fields(event, message=True)) for name, event in sorted(registry.EVENTS.items()))
    return _table(("event", "fields"), rows)


def node_types() -> str:
    names: dict[tuple[str, str], list[str]] = {}
    for name, config in NODE_TYPES.items():
        aliases = (alias for alias, target in ALIASES.items() if target == name)
        names.setdefault((config.kind, _fields(config)), []).extend((name, *aliases))
    rows = ((", ".join(f"`{name}`" for name in each), *config) for config, each in names.items())
    return _table(("type", "kind", "config"), rows)


def node_config() -> str:
    return ", ".join(f"`{name}`" for name in NodeConfig.model_fields)


def cli() -> str:
    """One line for each command of `ap`, those of a group by their full name."""
    return _table(("command", "does"), sorted(_cli_rows("ap", typer.main.get_command(app))))


def _cli_rows(name: str, command: Any) -> Iterable[tuple[str, str]]:
    if isinstance(command, TyperGroup):
        for each, inner in command.commands.items():
            yield from _cli_rows(f"{name} {each}", inner)
        if not command.invoke_without_command:
            return
    options = (max(option.opts, key=len) for option in command.params if isinstance(option, TyperOption))
    yield f"`{name}`", f"{command.help.splitlines()[0]} {' '.join(f'`{option}`' for option in options)}".strip()


def _fields(model: type[pydantic.BaseModel], *, message: bool = False) -> str:
    """The fields of a model by the names that are written; `?`: may be left out."""
    hidden = {"type"} if message else set(NodeConfig.model_fields)
    return ", ".join(
        f"`{name}{'' if field.is_required() else '?'}`"
        for name, field in model.model_fields.items()
        if name not in hidden
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


SECTIONS = {
    "cli": cli,
    "node types": node_types,
    "node config": node_config,
    "commands": commands,
    "events": events,
}


def with_tables(text: str) -> str:
    """`text` with what stands between `<!-- name -->` and `<!-- end -->` made anew. Raises ValueError."""
    for name, make in SECTIONS.items():
        begin = text.index(f"<!-- {name} -->") + len(f"<!-- {name} -->")
        end = text.index("<!-- end -->", begin)
        text = f"{text[:begin]}\n{make()}\n{text[end:]}"
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text("utf-8")), "utf-8")
