"""All tables of the platform, and which of them are projections."""

from __future__ import annotations

from gateway import audit_table
from infra.db import metadata
from infra.domains import PROJECTIONS
from outbox import tables as kernel
from outbox.tombstones import TOMBSTONES

OPERATIONAL = (
    kernel.LANE,
    kernel.OUTBOX,
    kernel.INBOX,
    kernel.TIMER,
    kernel.OUTCOME,
    kernel.DEAD_LETTER,
    TOMBSTONES.table,
    audit_table.AUDITS.table,
)
"""Neither folded nor the log: how the system works right now."""

READABLE = (
    *(spec.name for spec in PROJECTIONS),
    kernel.EVENT.name,
    kernel.OUTCOME.name,
    kernel.DEAD_LETTER.name,
    audit_table.AUDITS.name,
    TOMBSTONES.name,
)
"""What the gateway reads, one tenant at a time."""

LOOKED_UP = (*(spec.name for spec in PROJECTIONS), kernel.OUTCOME.name, TOMBSTONES.name)
"""Whose tenant the gateway finds out by an id."""

TENANT_TABLES = tuple(sorted(name for name, table in metadata.tables.items() if "tenant_id" in table.columns))

__all__ = ["LOOKED_UP", "OPERATIONAL", "READABLE", "TENANT_TABLES", "metadata"]
