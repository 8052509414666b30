"""The vocabulary of decisions: what a decider sees, what it may answer, and how a domain is declared.

A decider is `decide(command, rows, meta)`; it returns, or yields one by one, events, follow-up commands,
timers, answers. Each yielded event is folded into `rows` before the decider goes on, so what it reads next is the
state after it. Reading a row that is not in memory raises `Missing`: the kernel loads it and decides again
from the start, which is safe because deciding is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

from infra.db import TableSpec
from schemas.envelope import AnswerTo
from schemas.messages import Command, Event


class Row(Protocol):
    """A frozen dataclass; `id` is its primary key."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Row)
E_co = TypeVar("E_co", bound=Event, covariant=True)
Key = tuple[type[Any], str]
"""A row: its type and id. In `Missing`, an empty id stands for all live rows of that type of the aggregate."""


class Preparation(NamedTuple):
    """Something a decision needs that takes long to make: `make` runs in a thread, outside any transaction.

    `keep` is given what it made, between two batches; the decision, asked again, must find it then. `make` turns
    every failure into a value: what it raises is a bug, and makes the record a dead letter. `key` names it.
    """

    key: str
    make: Callable[[], Any]
    keep: Callable[[Any], None]


class Missing(Exception):
    """The decision needs what is not in memory.

    `rows` of this aggregate, `facts` of others, stored `outcomes` of commands by id; `work`: what must be made first,
    while only the records of this lane wait.
    """

    def __init__(
        self,
        rows: Iterable[Key] = (),
        facts: Iterable[Key] = (),
        outcomes: Iterable[str] = (),
        work: Iterable[Preparation] = (),
    ) -> None:
        self.rows = tuple(rows)
        self.facts = tuple(facts)
        self.outcomes = tuple(outcomes)
        self.work = tuple(work)


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
    answer_to: str = ""


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


@dataclass(frozen=True, slots=True)
class Awaited:
    """Send `command`, and wait for what becomes of it: `Domain.answered` is asked, with `subject` and `wait_id`."""

    command: Command
    subject: str
    wait_id: str
    is_event: ClassVar[bool] = False


class Answer(NamedTuple):
    """What became of an awaited command: its result, or why there is none."""

    result: Any = None
    code: str = ""
    detail: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.code)


@dataclass(frozen=True, slots=True)
class Reply:
    """Tell whoever waits by `answer_to`, the `meta.answer_to` of the command that began this."""

    answer_to: str
    answer: Answer
    is_event: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Deferred:
    """The outcome of this command from outside comes later, by `Settled`; it fails after so many seconds."""

    seconds: float
    is_event: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Settled:
    """The outcome of an earlier command for this aggregate that was `Deferred`; nothing if it has one already.

    `body`: the result, or what `Rejected.problem` gives.
    """

    command_id: str
    status: Literal["succeeded", "rejected", "failed"]
    body: Mapping[str, Any]
    is_event: ClassVar[bool] = False


Decision = Event | Command | After | Awaited | Reply | Deferred | Settled
Decide = Callable[[Any, Rows, Meta], Iterable[Decision]]
Evolve = Callable[[Rows, Recorded[Any]], Iterable[Row]]
React = Callable[[Any, Any, Meta], Iterable[Command]]
"""(event, the header of its aggregate after it, meta): how one domain answers another's event."""
Facts = Callable[[Any], Iterable[Key]]
"""(command): rows of other aggregates that its decision will want to know."""


@dataclass(frozen=True, slots=True)
class Domain:
    """One aggregate type. `head` is its header row: its `seq` is the number of its events; id = aggregate id.

    `decide` names its commands, `events` what they make, `tables` what `evolve` folds those into.

    `answer(command, rows, meta)` is the result a sender from outside gets; `failed(command, code, detail)` is the
    command that tells the aggregate that one of its internal commands became a dead letter;
    `answered(answer_to, answer)` is the command that tells one of its aggregates what became of a command that it
    awaits, also if that was refused or is a dead letter; `facts` names what a command's decision asks of other
    aggregates, so that a batch reads it in one go; `ended(head)` says that nothing changes this aggregate any
    more: memory forgets it, retention may remove it.
    """

    name: str
    head: type[Any]
    decide: Mapping[type[Command], Decide]
    evolve: Evolve
    events: tuple[type[Event], ...]
    tables: tuple[TableSpec, ...]
    answer: Callable[[Command, Rows, Meta], Mapping[str, Any]]
    react: Mapping[type[Event], tuple[React, ...]] = field(default_factory=dict)
    failed: Callable[[Command, str, str], Command | None] = lambda command, code, detail: None
    answered: Callable[[AnswerTo, Answer], Command | None] = lambda answer_to, answer: None
    facts: Mapping[type[Command], Facts] = field(default_factory=dict)
    ended: Callable[[Any], bool] = lambda head: False
