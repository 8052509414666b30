"""I9: the event log folded anew, aggregate by aggregate, against what the projection tables hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from bus.decider import Domain
from bus.postgres import load_row
from handlers import access, catalog
from handlers.programs import Programs
from handlers.runtime import Runtime
from infra.db import TableSpec
from infra.schema import PROJECTIONS
from infra.verify.history import History
from infra.verify.system import System

DOMAINS: tuple[Domain, ...] = (Runtime(Programs()).domain(), catalog.DOMAIN, access.DOMAIN)
EVOLVE = {event.model_fields["type"].default: domain.evolve for domain in DOMAINS for event in domain.events}
HEADS = {event.model_fields["type"].default: domain.head for domain in DOMAINS for event in domain.events}
SPECS = {spec.row: spec for spec in PROJECTIONS}


class FoldRows:
    """`bus.decider.Rows` of one aggregate that begins with nothing."""

    def __init__(self) -> None:
        self.rows: dict[tuple[type[Any], str], Any] = {}

    def get(self, kind: type[Any], id: str) -> Any:
        return self.rows.get((kind, id))

    def want(self, kind: type[Any], ids: Iterable[str]) -> None:
        """All there is is in memory."""

    def live(self, kind: type[Any]) -> list[Any]:
        return [row for (of, _), row in self.rows.items() if of is kind and SPECS[kind].live(row)]

    def fact(self, kind: type[Any], id: str) -> Any:
        raise LookupError(f"a fold may read its own aggregate only, not {kind.__name__} {id}")


def folded(history: History) -> dict[tuple[type[Any], str], Any]:
    """The rows of one aggregate by its events. Raises whatever a broken history makes `evolve` raise."""
    rows = FoldRows()
    for each in history:
        for row in EVOLVE[each.event.type](rows, each):
            rows.rows[type(row), row.id] = row
    return rows.rows


def dump(spec: TableSpec, row: Any) -> bytes:
    """The canonical form of a row: every column but the operational ones, in the table's order."""
    values = [getattr(row, c.name) for c in spec.columns if c.name not in spec.operational]
    return orjson.dumps(values, option=orjson.OPT_SORT_KEYS)


def differences(spec: TableSpec, expected: Any, stored: Any) -> Iterator[str]:
    if stored is None:
        yield f"{spec.name} {expected.id}: the events give it, the table lacks it"
    elif expected is None:
        yield f"{spec.name} {stored.id}: in the table, and no event gives it"
    elif dump(spec, expected) != dump(spec, stored):
        names = [
            column.name
            for column in spec.columns
            if column.name not in spec.operational and getattr(expected, column.name) != getattr(stored, column.name)
        ]
        yield f"{spec.name} {stored.id}: differs in {', '.join(names) or 'its canonical form'}"


async def compare(system: System, histories: Sequence[History]) -> None:
    """Fold these whole aggregates and compare all their rows."""
    expected: dict[type[Any], dict[str, Any]] = defaultdict(dict)
    ids = []
    for history in histories:
        aggregate_id = history[0].aggregate_id
        ids.append(aggregate_id)
        try:
            for (kind, id), row in folded(history).items():
                expected[kind][id] = row
        except Exception as error:
            problem = f"{aggregate_id}: its events cannot be folded: {type(error).__name__}: {error}"
            system.report.add("I9", [problem[:300]])
    for spec in PROJECTIONS:
        stored = await _stored(system, spec, ids)
        system.report.checked[f"{spec.name} rows"] += len(stored)
        given = expected[spec.row]
        for id in sorted({*given, *stored}):
            system.report.add("I9", differences(spec, given.get(id), stored.get(id)))


async def _stored(system: System, spec: TableSpec, aggregate_ids: Sequence[str]) -> dict[str, Any]:
    names = ", ".join(f'"{column.name}"' for column in spec.columns)
    rows = await system.database.fetch(
        f"SELECT {names} FROM {spec.name} WHERE {spec.parent} = ANY($1::uuid[])", aggregate_ids
    )
    return {row.id: row for row in (load_row(spec, tuple(each)) for each in rows)}


async def unfounded(system: System) -> None:
    """Rows of aggregates that have no event at all."""
    for spec in PROJECTIONS:
        sql = (
            f"SELECT t.id FROM {spec.name} t WHERE NOT EXISTS"
            f" (SELECT FROM event e WHERE e.aggregate_id = t.{spec.parent}) ORDER BY t.id"
        )
        async for row in system.stream(sql):
            system.report.add("I9", [f"{spec.name} {row[0]}: in the table, and no event gives it"])
