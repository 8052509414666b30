"""The rows of aggregates in memory, valid while their lane's epoch stands, and what a decision sees of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from infra.db import TableSpec
from outbox.tombstones import Tombstone
from schemas.decider import Key, Missing, Row

_UNKNOWN: Any = object()


class Aggregate:
    """What is in memory of one aggregate. `whole`: created under this epoch, so what is not here does not exist.

    `groups`: row types of which all live rows are here. `gone`: what retention has left of it. `dropped`: ids of rows
    that were here and exist, but have left memory. `size`: about how many bytes its rows take as JSON.
    """

    __slots__ = ("dropped", "gone", "groups", "rows", "size", "whole")

    def __init__(self) -> None:
        self.rows: dict[Key, Any] = {}
        self.groups: set[type[Any]] = set()
        self.whole = False
        self.gone: Tombstone | None = None
        self.dropped: set[str] = set()
        self.size = 0

    def drop_ended(self, specs: Mapping[type[Any], TableSpec], kept: int) -> None:
        """Let rows that are not live leave memory, but for the `kept` ones that came last."""
        ended = [key for key, row in self.rows.items() if row is not None and not specs[key[0]].live(row)]
        for key in ended[: len(ended) - kept]:
            del self.rows[key]
            self.dropped.add(key[1])
        self.size = sum(weight(row, specs[kind]) for (kind, _), row in self.rows.items() if row is not None)


def weight(row: Any, spec: TableSpec) -> int:
    """About how many bytes a row takes as JSON."""
    return sum(_length(getattr(row, column.name)) for column in spec.columns)


def _length(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return len(orjson.dumps(value)) if isinstance(value, dict | list) else 8


class View:
    """`Rows` for one decision: the aggregate in memory under the changes made so far."""

    __slots__ = ("_aggregate", "_facts", "_held", "_owner", "_specs", "_tenant_id", "changed")

    def __init__(
        self,
        aggregate: Aggregate,
        facts: Mapping[Key, Any],
        specs: Mapping[type[Any], TableSpec],
        held: set[Key],
        owner: str,
        tenant_id: str,
    ) -> None:
        self._aggregate = aggregate
        self._facts = facts
        self._specs = specs
        self._held = held
        self._owner = owner
        self._tenant_id = tenant_id
        self.changed: dict[Key, Any] = {}

    def hide(self) -> None:
        """The aggregate is another tenant's: for this decision there is none."""
        self._aggregate = Aggregate()
        self._aggregate.whole = True

    def get(self, kind: type[Any], id: str) -> Any:
        key = (kind, id)
        row = self.changed.get(key)
        if row is None:
            row = self._known(key)
            if row is _UNKNOWN:
                raise Missing(rows=(key,))
        return row

    def want(self, kind: type[Row], ids: Iterable[str]) -> None:
        missing = [(kind, id) for id in ids if (kind, id) not in self.changed and self._known((kind, id)) is _UNKNOWN]
        if missing:
            raise Missing(rows=missing)

    def live(self, kind: type[Any]) -> list[Any]:
        aggregate = self._aggregate
        if not aggregate.whole and kind not in aggregate.groups:
            raise Missing(rows=((kind, ""),))
        spec = self._specs[kind]
        rows, missing = [], []
        for key, row in aggregate.rows.items():
            if key[0] is not kind or key in self.changed or row is None or not spec.live(row):
                continue
            if self._known(key) is _UNKNOWN:
                missing.append(key)
            else:
                rows.append(row)
        if missing:
            raise Missing(rows=missing)
        rows.extend(row for key, row in self.changed.items() if key[0] is kind and spec.live(row))
        return rows

    def fact(self, kind: type[Any], id: str) -> Any:
        try:
            row = self._facts[kind, id]
        except KeyError:
            raise Missing(facts=((kind, id),)) from None
        return row if row is not None and row.tenant_id == self._tenant_id else None

    def _known(self, key: Key) -> Any:
        """The row as far as memory may be trusted: a volatile row only if it is ours or locked."""
        aggregate = self._aggregate
        row = aggregate.rows.get(key, _UNKNOWN)
        if row is _UNKNOWN:
            if key[1] in aggregate.dropped:
                return _UNKNOWN
            if aggregate.whole or (key[0] in aggregate.groups and self._specs[key[0]].whole):
                return None
            return _UNKNOWN
        if row is not None:
            volatile = self._specs[key[0]].volatile
            if volatile and key not in self._held and volatile(row) and row.leased_by != self._owner:
                return _UNKNOWN
        return row
