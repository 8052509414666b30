"""All tables of the platform: which of them are projections, which have tenants, and who may do what with them."""

from __future__ import annotations

import sqlalchemy as sa

from gateway import audit_table
from gateway.http.postgres import looked_up
from infra.database.policies import Access
from infra.db import TableSpec, metadata
from outbox import tables as kernel
from projections import access, catalog, runtime

SCHEMA = sa.Table(
    "schema_made",
    metadata,
    sa.Column("fingerprint", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
)
"""One row: which schema this database has, and which version of the program made it."""

PROJECTIONS: tuple[TableSpec, ...] = (*catalog.TABLES, *runtime.TABLES, *access.TABLES)
"""Folded from events; a rebuild compares them."""

OPERATIONAL = (
    kernel.LANE,
    kernel.OUTBOX,
    kernel.INBOX,
    kernel.TIMER,
    kernel.OUTCOME,
    kernel.DEAD_LETTER,
    kernel.TOMBSTONE,
    audit_table.AUDIT_TABLE,
    SCHEMA,
)
"""Neither folded nor the log: how the system works right now."""

ACCESS = Access(
    tables=metadata.sorted_tables,
    readable=(
        "definition",
        "definition_version",
        "run",
        "node_run",
        "run_mark",
        "event",
        "api_key",
        "command_outcome",
        "dead_letter",
        "gateway_request_audit",
        "tombstone",
        "lane",
    ),
    insertable=("gateway_request_audit",),
    looked_up=looked_up(),
)

__all__ = ["ACCESS", "OPERATIONAL", "PROJECTIONS", "SCHEMA", "metadata"]
