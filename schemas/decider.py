"""The vocabulary of decisions: what a decider sees, what it may answer, and how a domain is declared.

A decider is `decide(command, rows, meta)`; it returns, or yields one by one, events, follow-up commands,
timers. Each yielded event is folded into `rows` before the decider goes on, so what it reads next is the
state after it. Reading a row that is not in memory raises `Missing`: the kernel loads it and decides again
from the start, which is safe because deciding is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from infra.db import TableSpec
from schemas.messages import Command, Event, JsonObject


class Row(Protocol):
    """A frozen dataclass; `id` is its primary key."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Row)
E_co = TypeVar("E_co", bound=Event, covariant=True)
Key = tuple[type[Any], str]
"""A row: its type and id. In `Missing`, an empty id stands for all live rows of that type of the aggregate."""


class Missing(Exception):
    """The decision needs rows that are not in memory: `rows` of this aggregate, `facts` of others."""

    def __init__(self, rows: Iterable[Key] = (), facts: Iterable[Key] = ()) -> None:
        self.rows = tuple(rows)
        self.facts = tuple(facts)


class Rows(Protocol):
    """The rows of one aggregate, and read-only facts of others."""

    def get(self, kind: type[R], id: str) -> R | None:
        """The row, or None if there is none. Raises Missing if that is not known."""

    def want(self, kind: type[Row], ids: Iterable[str]) -> None:
        """Raise one Missing for all of `ids` that are not known yet."""

    def live(self, kind: type[R]) -> list[R]:
        """All rows of that type of this aggregate that are live (its table says what that is), in no order."""

    def fact(self, kind: type[R], id: str) -> R | None:
        """A row of another aggregate as of this transaction, for reading only."""


class Meta(NamedTuple):
    """What a decision may know beside its state. `at` is database time in seconds since 1970."""

    message_id: str
    tenant_id: str
    aggregate_id: str
    at: float
    actor: str = ""
    correlation_id: str = ""
    traceparent: str = ""
    lane: int = 0


class Recorded(NamedTuple, Generic[E_co]):
    """An event as it is folded: with its place in its aggregate's history."""

    event: E_co
    aggregate_id: str
    seq: int
    at: float
    tenant_id: str
    lane: int
    actor: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class After:
    """Send `command` when `seconds` have passed."""

    seconds: float
    command: Command
    is_event: ClassVar[bool] = False


Decision = Event | Command | After
Decide = Callable[[Any, Rows, Meta], Iterable[Decision]]
Evolve = Callable[[Rows, Recorded[Any]], Iterable[Row]]
React = Callable[[Any, Meta], Iterable[Command]]


@dataclass(frozen=True, slots=True)
class Domain:
    """One aggregate type. `head` is its header row: its `seq` is the number of its events; id = aggregate id.

    `decide` names its commands, `events` what they make, `tables` what `evolve` folds those into.

    `answer(command, rows, meta)` is the result a sender from outside gets; `failed(command, code, detail)`
    is the command that tells the aggregate that one of its internal commands became a dead letter;
    `ended(head)` says that hardly anything will come for this aggregate any more, so memory may forget it.
    """

    name: str
    head: type[Any]
    decide: Mapping[type[Command], Decide]
    evolve: Evolve
    events: tuple[type[Event], ...]
    tables: tuple[TableSpec, ...]
    answer: Callable[[Command, Rows, Meta], JsonObject]
    react: Mapping[type[Event], tuple[React, ...]] = field(default_factory=dict)
    failed: Callable[[Command, str, str], Command | None] = lambda command, code, detail: None
    ended: Callable[[Any], bool] = lambda head: False
