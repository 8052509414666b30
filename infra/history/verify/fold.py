"""I9: the event log folded anew, aggregate by aggregate, against what the projection tables hold."""

from __future__ import annotations

from collections.abc import Sequence

from infra.domains import EVOLVE, PROJECTIONS
from infra.history.rebuild import comparison
from infra.history.rebuild.comparison import Comparer
from infra.history.verify.history import History
from infra.history.verify.system import System
from projections.fold import FoldRows

COMPARERS = tuple(Comparer(spec) for spec in PROJECTIONS)
TABLES = {comparer.kind: comparer.table for comparer in COMPARERS}


def folded(history: History) -> FoldRows:
    """The rows of one aggregate by its events. Raises whatever a broken history makes `evolve` raise."""
    rows = FoldRows()
    for each in history:
        rows.apply(EVOLVE[each.event.type], each)
    return rows


async def compare(system: System, histories: Sequence[History]) -> None:
    """Fold these whole aggregates and compare all their rows."""
    expected: dict[str, FoldRows | None] = {}
    for history in histories:
        aggregate_id = history[0].aggregate_id
        try:
            expected[aggregate_id] = folded(history)
        except Exception as error:
            expected[aggregate_id] = None
            problem = f"{aggregate_id}: its events cannot be folded: {type(error).__name__}: {error}"
            system.report.add("I9", [problem[:300]])
    for comparer in COMPARERS:
        sql = f"{comparer.select} WHERE t.{comparer.spec.parent} = ANY($1::uuid[])"
        stored = await system.database.fetch(sql, list(expected))
        system.report.checked[f"{comparer.table} rows"] += len(stored)
        system.report.add("I9", map(str, comparison.compare(comparer, stored, expected)))
    system.report.add("I9", map(str, comparison.missing(expected, TABLES)))


async def unfounded(system: System) -> None:
    """Rows of aggregates that have no event at all."""
    for spec in PROJECTIONS:
        sql = (
            f"SELECT t.id FROM {spec.name} t WHERE NOT EXISTS"
            f" (SELECT FROM event e WHERE e.aggregate_id = t.{spec.parent}) ORDER BY t.id"
        )
        async for row in system.stream(sql):
            system.report.add("I9", [f"{spec.name} {row[0]}: in the table, and no event gives it"])
