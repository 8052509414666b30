"""What the gateway needs of the world: a bus to send commands on, and tables to read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bus.record_batches import Keyed
from infra.db import Small, TableSpec, Uuid
from projections.access import ApiKey
from schemas.decider import Recorded
from schemas.envelope import Headers
from schemas.messages import Event


class CommandBus(Protocol):
    async def send(self, topic: str, partition: int, key: str | None, headers: Headers, body: bytes) -> None:
        """Produce a record and return once all replicas have it. Raises bus.producer.BusUnavailable."""


class EventReader(Protocol):
    """The events of all aggregates from some moment on. Whatever it raises, it is closed and begun again."""

    async def to_end(self) -> None:
        """Stand at the end: every event that is written after this call has begun will be read."""

    async def read(self, keys: Container[bytes]) -> list[Keyed]:
        """Events of the aggregates with these ids, each one's in order; returns after a moment if there is none."""

    async def close(self) -> None: ...


class DatabaseUnavailable(Exception):
    """Postgres does not answer, or not in time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command: status succeeded, rejected or failed; body is the result or the problem."""

    command_id: str
    status: str
    body: Any


@dataclass(frozen=True, slots=True)
class Condition:
    """What a row must be, said in SQL and in Python."""

    sql: str
    holds: Callable[[Any], bool]


SCAN_ROWS_MAX = 10_000
"""Of a list, looked through for one page where no index finds the rows."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: rows where every column equals its value, after the cursor's row, in `order`.

    `order` names the columns sorted by; no two rows have the same values in all of them. An index finds the rows by
    `equal`; what they must be besides, `matching` and `where`, is looked for among the first `scan` of them.
    """

    spec: TableSpec
    order: tuple[str, ...]
    limit: int
    descending: bool = True
    equal: Mapping[str, Any] = field(default_factory=dict)
    matching: Mapping[str, Any] = field(default_factory=dict)
    where: tuple[Condition, ...] = ()
    after: tuple[Any, ...] | None = None
    scan: int = SCAN_ROWS_MAX

    @property
    def scans(self) -> bool:
        return bool(self.matching or self.where)

    def place(self, row: Any) -> tuple[Any, ...]:
        """Where a row stands in the order: what `after` is."""
        return tuple(getattr(row, name) for name in self.order)


@dataclass(frozen=True, slots=True)
class Found:
    """The rows of a page. `scanned_to`: where its search ended before the list did and before the page was full."""

    rows: Sequence[Any]
    scanned_to: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node run of a manual run that waits for its turn."""

    node_run_id: str
    run_id: str
    tenant_id: str


@dataclass(frozen=True)
class AuditRecord:
    """One request, as kept for the tenant's audits. `tenant_id` is empty if the caller had none."""

    id: Uuid
    tenant_id: str
    api_key_id: str | None
    user_id: str | None
    method: str
    path: str
    route: str
    status_code: Small
    duration_ms: float
    request_id: str
    created_at: float


class Reads(Protocol):
    """Queries. Each sees one tenant's rows only, but for those that say otherwise.

    All raise DatabaseUnavailable.
    """

    async def one(self, tenant_id: str, spec: TableSpec, id: str) -> Any | None:
        """The row with this id."""

    async def page(self, tenant_id: str, page: Page) -> Found:
        """Up to `page.limit` rows."""

    def history(self, tenant_id: str, aggregate_id: str, seq_max: int | None) -> AsyncIterator[Recorded[Event]]:
        """The events of an aggregate in order, up to a seq."""

    async def outcome(self, tenant_id: str, command_id: str) -> Outcome | None: ...

    async def step_in_flight(self, tenant_id: str, run_id: str) -> bool:
        """Whether a node run of this run may be claimed or is being executed."""

    async def candidates(self, tenant_id: str | None, limit: int) -> Sequence[Candidate]:
        """Node runs that wait for a worker's call, oldest first; of all tenants if None."""

    async def tenant_of(self, table: str, id: str) -> str | None:
        """Whose row that is, over all tenants."""

    async def api_key(self, id: str) -> ApiKey | None:
        """The key with this id, over all tenants."""

    async def any_api_key(self) -> bool:
        """Whether any key was ever made, over all tenants."""

    async def write_audit(self, records: Sequence[AuditRecord]) -> None:
        """Store audit records, each under its own tenant."""

    async def audit_stats(self, tenant_id: str, since: float) -> Mapping[str, Any]: ...

    async def ping(self) -> None: ...
