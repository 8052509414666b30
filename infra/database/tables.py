"""All tables of the platform: which of them are projections, which have tenants, and who may do what with them."""

from __future__ import annotations

import sqlalchemy as sa

from gateway import audit_table
from gateway.http.postgres import looked_up
from infra.database.policies import Access
from infra.db import metadata
from infra.domains import PROJECTIONS
from outbox import tables as kernel
from outbox.tombstones import TOMBSTONES

SCHEMA = sa.Table(
    "schema_made",
    metadata,
    sa.Column("fingerprint", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
)
"""One row: which schema this database has, and which version of the program made it."""

OPERATIONAL = (
    kernel.LANE,
    kernel.OUTBOX,
    kernel.INBOX,
    kernel.TIMER,
    kernel.OUTCOME,
    kernel.DEAD_LETTER,
    TOMBSTONES.table,
    audit_table.AUDITS.table,
    SCHEMA,
)
"""Neither folded nor the log: how the system works right now."""

_FOLDED = tuple(spec.name for spec in PROJECTIONS)

ACCESS = Access(
    tables=metadata.sorted_tables,
    readable=(
        *_FOLDED,
        kernel.EVENT.name,
        kernel.OUTCOME.name,
        kernel.DEAD_LETTER.name,
        audit_table.AUDITS.name,
        TOMBSTONES.name,
        kernel.LANE.name,
    ),
    insertable=(audit_table.AUDITS.name,),
    looked_up=looked_up((*_FOLDED, kernel.OUTCOME.name, TOMBSTONES.name)),
)

__all__ = ["ACCESS", "OPERATIONAL", "SCHEMA", "metadata"]
