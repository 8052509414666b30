"""A table is declared by the dataclass of its rows, or refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from infra.db import Once, Uuid, metadata, table
from projections.runtime import MARKS, NODE_RUNS, RUNS


@dataclass(frozen=True)
class Late:
    name: str
    id: Uuid


@dataclass(frozen=True, slots=True)
class Slotted:
    id: Uuid


@dataclass(frozen=True)
class Odd:
    id: Uuid
    parts: Once[frozenset[str]]


@pytest.mark.parametrize("row", [Late, Slotted, Odd])
def test_rows_that_cannot_be_written_are_refused(row: type[object]) -> None:
    with pytest.raises(TypeError):
        table(row, "refused")
    assert "refused" not in metadata.tables


def test_updates_write_all_but_keys_and_what_is_written_once() -> None:
    once = {spec.name: {c.name for c in spec.columns} - {c.name for c in spec.mutable} for spec in (NODE_RUNS, MARKS)}
    assert once["run_mark"] == {"id", "run_id", "tenant_id"}
    assert {"id", "run_id", "tenant_id", "lane", "created_at"} <= once["node_run"]
    assert {"status", "leased_by", "result"} & once["node_run"] == set()


def test_types_nullability_and_what_is_operational_follow_the_annotations() -> None:
    run, node = RUNS.table.columns, NODE_RUNS.table.columns
    types = {column.name: column.pg_type for column in NODE_RUNS.columns}
    assert [types[name] for name in ("id", "lane", "attempt", "input", "due_at", "ready", "result")] == [
        "uuid", "int2", "int4", "bytea", "float8", "bool", "bytea",
    ]  # fmt: skip
    nullable = {column.name for column in (run["output"], run["error"], node["due_at"]) if column.nullable}
    assert nullable == {"output", "error", "due_at"}
    assert {run["inputs"].nullable, node["timeout_seconds"].nullable} == {False}
    assert NODE_RUNS.operational == {"leased_by", "lease_until", "deadline_at", "result", "started_at", "listed"}
