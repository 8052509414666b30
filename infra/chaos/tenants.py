"""I10 by what the load's tenants carry: the mark of one stands in no row, record or header of the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import LargeBinary

from bus.replay import TopicMissing, TopicReader
from infra.chaos.workload import TENANTS, owner_mark
from infra.database.tables import metadata
from infra.db import Json
from schemas.envelope import Malformed, decode_headers
from schemas.topics import TOPICS

Add = Callable[[str, str], None]

ROWS = {
    name: [column.name for column in table.columns if isinstance(column.type, Json | LargeBinary)]
    for name, table in metadata.tables.items()
    if "tenant_id" in table.columns
}
"""Columns of bytes, by table: what a run carries may stand in any."""


async def check_rows(database: Any, add: Add) -> int:
    """How many rows bear their own tenant's mark: a check of nothing would show."""
    bearing = 0
    for table, columns in ROWS.items():
        content = " || ".join(["''::bytea", *(f"coalesce({column}, '')" for column in columns)])
        for tenant in TENANTS:
            rows = f"SELECT count(*) FROM {table} WHERE tenant_id = $1 AND position($2 in {content}) > 0"
            bearing += await database.fetchval(rows, tenant, owner_mark(tenant).encode())
            for other in TENANTS:
                if other != tenant and (found := await database.fetchval(rows, tenant, owner_mark(other).encode())):
                    add("row with another tenant's data", f"{found} of {table} of {tenant} hold {other}'s")
    return bearing


async def check_records(bootstrap: str, prefix: str, add: Add) -> int:
    """How many records bear their own tenant's mark."""
    bearing: Counter[str] = Counter()
    async with TopicReader(bootstrap, prefix) as reader:
        for topic in TOPICS:
            try:
                extents = await reader.extents(topic.name)
            except TopicMissing:
                continue
            for partition, extent in extents.items():
                async for records in reader.read(topic.name, partition, extent):
                    for record in records:
                        _check_record(record, f"{topic.name}/{partition}@{record.offset}", add, bearing)
    return bearing.total()


def _check_record(record: Any, place: str, add: Add, bearing: Counter[str]) -> None:
    try:
        tenant = decode_headers(record.headers).tenant_id
    except Malformed:
        return  # What strangers send is nobody's.
    content = (record.value or b"") + b"".join(value or b"" for _, value in record.headers)
    for each in TENANTS:
        if owner_mark(each).encode() not in content:
            continue
        bearing[each] += each == tenant
        if each != tenant:
            add("record with another tenant's data", f"{place} of {tenant or 'nobody'} holds {each}'s")


def check_logs(folder: Path, add: Add) -> int:
    """No line that processes logged names two tenants, or what a run carries. How many lines there were."""
    lines = 0
    for log in sorted((folder / "log").glob("*.log")):
        for line in log.read_text("utf-8", "replace").splitlines():
            lines += 1
            named = [tenant for tenant in TENANTS if tenant in line]
            if len(named) > 1:
                add("log line about two tenants", f"{log.name}: {line[:200]}")
    return lines
