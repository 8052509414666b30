"""Filling the tables of another schema from the log, by binary COPY."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import asyncpg

from infra.db import TableSpec
from projections.fold import FoldRows


class TargetRefused(Exception):
    """The schema cannot be filled, and why; nothing was written."""


class Target:
    """Tables like the projections' (columns, constraints, indexes) in a schema of their own.

    All is one transaction: the schema is whole, or as it was. No role but its owner may read it.
    """

    def __init__(self, database_url: str, schema: str, specs: Sequence[TableSpec]) -> None:
        self._url = database_url
        self._schema = schema
        self._specs = {spec.row: spec for spec in specs}

    async def __aenter__(self) -> Self:
        self._connection = await asyncpg.connect(self._url)
        self._transaction = self._connection.transaction()
        await self._transaction.start()
        try:
            await self._make()
        except BaseException:
            await self._connection.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await (self._transaction.commit() if error is None else self._transaction.rollback())
        finally:
            await self._connection.close()

    async def write(self, folded: Mapping[str, FoldRows | None]) -> Counter[str]:
        """Write these whole aggregates. How many rows of which table."""
        by_kind: dict[type[Any], list[tuple[Any, ...]]] = {kind: [] for kind in self._specs}
        dumps = {kind: [(c.name, c.dump) for c in spec.columns] for kind, spec in self._specs.items()}
        for aggregate in folded.values():
            for (kind, _), row in aggregate.rows.items() if aggregate is not None else ():
                values = row.__dict__
                by_kind[kind].append(
                    tuple(
                        values[name] if dump is None else dump(values[name])
                        for name, dump in dumps[kind]
                    )
                )  # fmt: skip
        for kind, records in by_kind.items():
            if records:
                await self._connection.copy_records_to_table(
                    self._specs[kind].name, schema_name=self._schema, records=records
                )
        return Counter({str(self._specs[kind].name): len(records) for kind, records in by_kind.items() if records})

    async def _make(self) -> None:
        if self._schema.startswith("pg_") or self._schema in ("public", "information_schema"):
            raise TargetRefused(f"{self._schema!r} is taken; name a schema of its own")
        name = '"' + self._schema.replace('"', '""') + '"'
        try:
            await self._connection.execute(f"CREATE SCHEMA {name}")
        except asyncpg.DuplicateSchemaError:
            raise TargetRefused(f"there is a schema {self._schema!r} already; drop it, or name another") from None
        for spec in self._specs.values():
            await self._connection.execute(f"CREATE TABLE {name}.{spec.name} (LIKE public.{spec.name} INCLUDING ALL)")
