"""The port of telemetry: what the bus and the steps tell whoever counts, times or traces; by default nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from schemas.envelope import Envelope

INGRESS_TYPE = "ingress"
"""Stands in `Batch.records` for records that are only moved on: their types are their senders' choice."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one committed transaction did. Seconds are of this process's monotonic clock.

    `records`: commands by type, INGRESS_TYPE for those of `ingress`. `rows`: rows of projections inserted or
    changed. `outs`: records sent beside events, dead letters included. `steps`: leased to this process.
    `ended`: aggregates that came to their end (runs). `at_once`: by one statement, without loading.
    """

    records: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    events: int = 0
    outs: int = 0
    steps: int = 0
    ended: int = 0
    dead_letters: int = 0
    deciding_seconds: float = 0.0
    committing_seconds: float = 0.0
    at_once: bool = False


class Step(NamedTuple):
    """One attempt of one step, as its holder begins it. `traceparent`: that of its run."""

    kind: str
    tenant_id: str
    run_id: str
    node_run_id: str
    node_id: str
    attempt: int
    lease_token: int
    traceparent: str
    correlation_id: str = ""


class Span(Protocol):
    """Work under way. `traceparent`: what calls made on its behalf carry on."""

    @property
    def traceparent(self) -> str: ...

    def end(self, error: str = "") -> None:
        """It is done; `error` is the code of its failure. Called once."""


class Telemetry(Protocol):
    """Told after the fact, from the loop that works: a call must neither block nor raise."""

    @property
    def traces(self) -> bool:
        """Whether `handled` wants to be called."""

    def batch(self, done: BatchReport) -> None:
        """Once for each committed transaction of records."""

    def handled(self, commands: Sequence[Envelope], began: float, ended: float) -> None:
        """The commands of one committed batch, begun and ended at these moments (database time, as `meta.at`)."""

    def claimed(self, lanes: int, seconds: float) -> None:
        """So many lanes were claimed and drained, in so much time."""

    def fenced(self, lanes: int) -> None:
        """So many lanes turned out to be somebody else's."""

    def step(self, step: Step) -> Span:
        """A step begins."""


class SilentSpan(NamedTuple):
    traceparent: str = ""

    def end(self, error: str = "") -> None:
        return None


class Silent:
    """Nobody wants to know."""

    traces = False

    def batch(self, done: BatchReport) -> None:
        return None

    def handled(self, commands: Sequence[Envelope], began: float, ended: float) -> None:
        return None

    def claimed(self, lanes: int, seconds: float) -> None:
        return None

    def fenced(self, lanes: int) -> None:
        return None

    def step(self, step: Step) -> Span:
        return SilentSpan(step.traceparent)


SILENT: Telemetry = Silent()
