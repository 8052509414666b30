"""What `ap verify` found: offending ids by invariant, how much was looked at, and what is no invariant's fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

INVARIANTS = {
    "I1": "no lost command: whatever was taken has exactly one outcome",
    "I2": "exactly one terminal transition per run and per node attempt",
    "I3": "no duplicate effect: a message was handled once",
    "I4": "per aggregate, seq is 1..n without gap in Postgres and on the topic",
    "I5": "state, events, outcome and inbox row appear together or not at all",
    "I6": "what was recorded reaches Kafka, and nothing in Kafka lacks a cause",
    "I7": "a result is accepted from the latest lease token only",
    "I9": "folding the event log gives the stored projections",
    "I10": "whatever one tenant caused bears that tenant",
    "I11": "no stuck work",
    "I12": "bad input is a dead letter with its reason, in Postgres and on its topic",
}
IDS_MAX = 1_000
"""Offending ids kept per invariant; `found` counts all."""


@dataclass(slots=True)
class Report:
    violations: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in INVARIANTS})
    found: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    """How many of each thing were looked at: a check of nothing shows."""
    notes: list[str] = field(default_factory=list)
    """What could not be checked, and why."""

    @property
    def clean(self) -> bool:
        return not any(self.violations.values())

    def add(self, invariant: str, problems: Iterable[str]) -> None:
        kept = self.violations[invariant]
        for problem in problems:
            self.found[invariant] += 1
            if len(kept) < IDS_MAX:
                kept.append(problem)

    def document(self) -> dict[str, Any]:
        return {
            "clean": self.clean,
            "violations": {name: ids for name, ids in self.violations.items() if ids},
            "found": dict(self.found),
            "checked": dict(sorted(self.checked.items())),
            "notes": self.notes,
        }
