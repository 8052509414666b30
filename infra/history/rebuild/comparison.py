"""Stored rows against folded ones: quickly where they are equal, column by column where they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import asyncpg
import orjson

from infra.db import Column, TableSpec
from infra.history.rebuild.report import Difference
from projections.fold import FoldRows

Folded = Mapping[str, FoldRows | None]
"""Whole aggregates by id; None: its events cannot be folded, so nothing is known about its rows."""


class Comparer:
    """How rows of one table are read and compared; operational columns are left out.

    `select` gives parent, id, the plain columns, then those kept as JSON text.
    """

    def __init__(self, spec: TableSpec) -> None:
        compared = [column for column in spec.columns if column.name not in spec.operational]
        json = [column for column in compared if column.pg_type == "bytea"]
        plain = [column for column in compared if column.pg_type != "bytea"]
        self.spec = spec
        self.table = str(spec.name)  # Not SQLAlchemy's kind of string: no key of a JSON document.
        self.kind = spec.row
        self.select = (
            f"SELECT t.{spec.parent}::text, t.id::text, {', '.join(_selected(each) for each in plain + json)}"
            f" FROM {spec.name} t"
        )
        self._plain_names = [column.name for column in plain]
        self._plain: Callable[[Any], Any] = attrgetter(*self._plain_names)
        self._json = [(index, column.name) for index, column in enumerate(json, 2 + len(plain))]
        self._plain_end = 2 + len(plain)

    def is_same(self, stored: asyncpg.Record, row: Any) -> bool:
        """Whether the stored row has the very values of the folded one, JSON text byte for byte."""
        if stored[2 : self._plain_end] != self._plain(row):
            return False
        for index, name in self._json:
            value, text = getattr(row, name), stored[index]
            if value is None:
                if text is not None:
                    return False
            elif text != orjson.dumps(value):
                return False
        return True

    def differing(self, stored: asyncpg.Record, row: Any) -> tuple[str, ...]:
        """The names of the columns that differ; JSON is compared by value, whatever the order of its keys."""
        plain = zip(self._plain_names, stored[2 : self._plain_end], self._plain(row), strict=True)
        names = [name for name, there, expected in plain if there != expected]
        names += [name for index, name in self._json if not _same_json(stored[index], getattr(row, name))]
        return tuple(names)


def compare(comparer: Comparer, stored: Sequence[asyncpg.Record], folded: Folded) -> Iterator[Difference]:
    """Compare all stored rows of these aggregates. Rows found are taken out of `folded`: what stays is missing."""
    table, kind = comparer.table, comparer.kind
    for record in stored:
        parent, id = record[0], record[1]
        if parent not in folded:
            yield Difference(table, id, parent, "extra")
            continue
        aggregate = folded[parent]
        if aggregate is None:
            continue
        row = aggregate.rows.pop((kind, id), None)
        if row is None:
            yield Difference(table, id, parent, "extra")
        elif not comparer.is_same(record, row):
            names = comparer.differing(record, row)
            if names:
                yield Difference(table, id, parent, "changed", names)


def missing(folded: Folded, tables: Mapping[type[Any], str]) -> Iterator[Difference]:
    """What `compare` of all tables left."""
    for aggregate_id, aggregate in folded.items():
        for kind, id in aggregate.rows if aggregate is not None else ():
            yield Difference(tables[kind], id, aggregate_id, "missing")


def _selected(column: Column) -> str:
    if column.pg_type == "uuid":
        return f't."{column.name}"::text'
    if column.dump is not None and column.pg_type == "float8":
        return f't."{column.name}"' if column.load is None else f'coalesce(t."{column.name}", 0)'
    return f't."{column.name}"'


def _same_json(text: bytes | None, value: Any) -> bool:
    if text is None or value is None:
        return text is None and value is None
    try:
        stored = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return orjson.dumps(stored, option=orjson.OPT_SORT_KEYS) == orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
