"""Every message by its type name, and how a body becomes a message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import pydantic
import pydantic_core

from schemas import access, catalog, human, outcomes, runtime, values
from schemas.envelope import Malformed
from schemas.messages import Command, Event
from schemas.problems import FieldError, pointer_of, summary


class Messages(Protocol):
    """The wire contract of one domain."""

    COMMANDS: tuple[type[Command], ...]
    EVENTS: tuple[type[Event], ...]


def by_name(commands: Iterable[type[Command]]) -> dict[str, type[Command]]:
    """Commands by their names on the wire."""
    return {command.model_fields["type"].default: command for command in commands}


DOMAINS: tuple[Messages, ...] = (catalog, runtime, access, human)
COMMANDS: Mapping[str, type[Command]] = by_name(
    (*(command for domain in DOMAINS for command in domain.COMMANDS), *outcomes.COMMANDS)
)
EVENTS: Mapping[str, type[Event]] = {
    event.model_fields["type"].default: event for domain in DOMAINS for event in domain.EVENTS
}


class Invalid(Malformed):
    """A body that does not fit its type: `errors` name each field by JSON pointer."""

    def __init__(self, code: str, detail: str, errors: tuple[FieldError, ...]) -> None:
        super().__init__(code, detail)
        self.errors = errors


PROBLEMS_MAX = 100


def problems(error: pydantic.ValidationError) -> tuple[FieldError, ...]:
    """The first PROBLEMS_MAX things that are wrong, by JSON pointer."""
    return tuple(
        {"pointer": pointer_of(*found["loc"]), "code": found["type"], "detail": found["msg"]}
        for found in error.errors(include_url=False, include_context=False, include_input=False)[:PROBLEMS_MAX]
    )


def decode_command(
    name: str, body: bytes, *, trusted: bool = False, commands: Mapping[str, type[Command]] = COMMANDS
) -> Command:
    """The command in a record's body; `trusted` skips the checks of values that our own producer has made.

    Raises Malformed (`unknown_type`, `invalid_json`), InvalidValue or Invalid (`invalid_body`).
    """
    kind = commands.get(name)
    if kind is None:
        raise Malformed("unknown_type", f"no command is called {name!r}")
    if not trusted:
        values.parse(body)
    try:
        return kind.__pydantic_validator__.validate_json(body)  # type: ignore[no-any-return]
    except pydantic_core.ValidationError as error:
        errors = problems(error)
        raise Invalid("invalid_body", summary(errors), errors) from None


def decode_event(name: str, body: bytes) -> Event:
    """The event stored under `name`. Raises KeyError for a name this code never knew."""
    return EVENTS[name].__pydantic_validator__.validate_json(body)  # type: ignore[no-any-return]
