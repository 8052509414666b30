"""The fault matrix: how often each fault must have struck before its silence means anything, and how often it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

SHARE = 0.25
"""Three runs of ten minutes must together reach this share of each target."""

TARGETS: dict[str, int] = {
    "gateway killed": 200,
    "worker or executor killed": 100,
    "all workers killed": 12,
    "crash point, in process": 1_000,
    "crash point, kill -9": 100,
    "zombie": 100,
    "member joined or left": 60,
    "kafka killed": 20,
    "kafka stood still": 8,
    "kafka half-open": 20,
    "postgres cut off": 20,
    "postgres sessions ended": 100,
    "postgres slow": 20,
    "records sent again": 10_000,
    "partition replayed": 20,
    "poison": 240,
    "run offered": 10_000,
    "rebuilt while running": 3,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    fault: str
    count: int
    target: int

    @property
    def quarter(self) -> int:
        return ceil(self.target * SHARE)

    @property
    def reached(self) -> bool:
        return self.count >= self.quarter


def rows(counts: Counter[str]) -> list[Row]:
    unknown = counts.keys() - TARGETS.keys()
    if unknown:
        raise ValueError(f"the matrix has no {sorted(unknown)}")
    return [Row(fault, counts[fault], target) for fault, target in TARGETS.items()]


def document(counts: Counter[str]) -> list[dict[str, Any]]:
    return [
        {"fault": r.fault, "count": r.count, "target": r.target, "quarter": r.quarter, "reached": r.reached}
        for r in rows(counts)
    ]


def table(counts: Counter[str], observed: Counter[str]) -> str:
    """What was injected against a quarter of its target, and what was seen to come of it."""
    lines = [["injected", "count", "quarter", "reached"]]
    lines += [[r.fault, str(r.count), f"{r.quarter} of {r.target}", "yes" if r.reached else "no"] for r in rows(counts)]
    seen = [["observed", "count"], *([name, str(count)] for name, count in sorted(observed.items()))]
    return f"{_aligned(lines)}\n\n{_aligned(seen)}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
