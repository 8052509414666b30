"""What a rebuild read, what it found different, and what it did about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["changed", "missing", "extra"]
DIFFERENCES_MAX = 1_000
"""Differences kept in a report; `different` counts all."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not what its events say. `missing`: the table lacks it; `extra`: no event gives it."""

    table: str
    id: str
    aggregate_id: str
    kind: Kind
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        match self.kind:
            case "changed":
                return f"{self.table} {self.id}: differs in {', '.join(self.columns)}"
            case "missing":
                return f"{self.table} {self.id}: the events give it, the table lacks it"
            case "extra":
                return f"{self.table} {self.id}: in the table, and no event gives it"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far reading has come: `fraction` of all aggregate ids, which are spread evenly."""

    events: int
    fraction: float
    seconds: float


@dataclass(slots=True)
class RebuildReport:
    """`seconds`: reading, folding and comparing (or copying), without repairs; `held_seconds` lists each hold of lanes.

    `unfoldable`: histories that cannot be folded, by aggregate id; they are neither compared nor repaired.
    `rows`: rows compared (or copied to a target) by table. `repaired`: rows written or deleted by table.
    """

    events: int = 0
    aggregates: int = 0
    seconds: float = 0.0
    rows: Counter[str] = field(default_factory=Counter)
    different: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    repaired: Counter[str] = field(default_factory=Counter)
    held_seconds: list[float] = field(default_factory=list)
    unfoldable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds if self.seconds else 0.0

    @property
    def equal(self) -> bool:
        return not self.different and not self.unfoldable

    def add(self, difference: Difference) -> None:
        self.different[difference.table] += 1
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(difference)

    def document(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "events": self.events,
            "aggregates": self.aggregates,
            "seconds": round(self.seconds, 3),
            "events_per_second": round(self.events_per_second),
            "rows": dict(self.rows),
            "different": dict(self.different),
            "differences": [asdict(each) for each in self.differences],
            "repaired": dict(self.repaired),
            "lanes_held": {
                "times": len(self.held_seconds),
                "seconds_max": round(max(self.held_seconds, default=0.0), 4),
                "seconds_total": round(sum(self.held_seconds), 4),
            },
            "unfoldable": self.unfoldable,
            "notes": self.notes,
        }
