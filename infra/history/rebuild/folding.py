"""Folding the log with the production folds, event by event, one aggregate after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from infra.domains import EVOLVE
from projections.fold import FoldRows
from schemas import registry
from schemas.decider import Recorded


@dataclass(frozen=True, slots=True)
class Unfoldable:
    aggregate_id: str
    reason: str


class Folder:
    """Takes events in the log's order and keeps what they make. `take_whole` hands out aggregates that have ended.

    An event is (aggregate_id, seq, type, data, at, tenant_id, lane, actor, correlation_id, traceparent).
    """

    def __init__(self) -> None:
        self.unfoldable: list[Unfoldable] = []
        self.aggregates = 0
        self._whole: dict[str, FoldRows | None] = {}
        self._id = ""
        self._rows: FoldRows | None = None
        self._seq = 0

    @property
    def current(self) -> FoldRows | None:
        """What the aggregate of the last event is by now; None if it cannot be folded."""
        return self._rows

    def take(self, events: Iterable[Any]) -> None:
        for event in events:
            if event[0] != self._id:
                self._begin(event[0])
            rows = self._rows
            if rows is None:
                continue
            self._seq += 1
            id, seq, name, data, at, tenant_id, lane, actor, correlation_id, traceparent = event
            try:
                if seq != self._seq:
                    raise ValueError(f"seq {seq} stands where {self._seq} was due")
                recorded = Recorded(
                    registry.decode_event(name, data), id, seq, at or 0.0, tenant_id, lane, actor, correlation_id, "",
                    traceparent,
                )  # fmt: skip
                rows.apply(EVOLVE[name], recorded)
            except Exception as error:
                self._give_up(f"seq {seq} ({name}): {type(error).__name__}: {error}")

    def forget(self, aggregate_id: str) -> None:
        """It was removed while its events were being read: what was folded of it is not to be compared."""
        if self._id == aggregate_id:
            self._id, self._rows = "", None

    def take_whole(self, until: str) -> dict[str, FoldRows | None]:
        """The aggregates before the id `until`, each once; None for one that cannot be folded."""
        if self._id and self._id < until:
            self._whole[self._id] = self._rows
            self._id, self._rows = "", None
        whole, self._whole = self._whole, {}
        return whole

    def _begin(self, id: str) -> None:
        if self._id:
            self._whole[self._id] = self._rows
        self.aggregates += 1
        self._id, self._rows, self._seq = id, FoldRows(), 0

    def _give_up(self, reason: str) -> None:
        self.unfoldable.append(Unfoldable(self._id, reason[:300]))
        self._rows = None
