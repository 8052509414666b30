"""The kernel's own tables: lanes, event log, outbox, inbox, timers, outcomes; none of them is a projection."""

from __future__ import annotations

import sqlalchemy as sa

from infra.db import Instant, metadata, uuid_column

LANE = sa.Table(
    "lane",
    metadata,
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("partition", sa.SmallInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("next_offset", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("position", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("sent", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("floor", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("owner", sa.Text, nullable=False, server_default=""),
    sa.Column("claimed_at", sa.TIMESTAMP(timezone=True)),
    sa.Column("stopped", sa.Text, nullable=False, server_default=""),
    info={"storage": "fillfactor = 30, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000"},
)
"""One partition of a consumed topic for the one consumer group. `position` counts the records the lane made
(events and outbox rows, in order); those up to `sent` are on Kafka. Every leased step that the lane made up to `floor`
is listed, so that the sweepers find it."""

EVENT = sa.Table(
    "event",
    metadata,
    uuid_column("aggregate_id", primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("lane", sa.SmallInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("correlation_id", sa.Text, nullable=False),
    sa.Column("causation_id", sa.Text, nullable=False),
    sa.Column("traceparent", sa.Text, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Index("event_unsent", "lane", "position"),
)
"""The truth. Rows above their lane's `sent` are the outbox of the `events` topic."""

QUEUE_STORAGE = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000"
"""Rows come and go: vacuumed by their number, whatever the size of the table."""

OUTBOX = sa.Table(
    "outbox",
    metadata,
    sa.Column("lane", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("partition", sa.SmallInteger, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("headers", sa.LargeBinary, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("tenant_id", sa.Text, nullable=False),
    info={"storage": QUEUE_STORAGE},
)

INBOX = sa.Table(
    "inbox",
    metadata,
    uuid_column("message_id", primary_key=True),
    sa.Column("redrive", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("at", Instant, nullable=False),
    sa.Index("inbox_age", "at"),
)

TIMER = sa.Table(
    "timer",
    metadata,
    uuid_column("id", primary_key=True),
    sa.Column("lane", sa.SmallInteger, nullable=False),
    sa.Column("due_at", sa.TIMESTAMP(timezone=True), nullable=False),
    sa.Column("partition", sa.SmallInteger, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("headers", sa.LargeBinary, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Index("timer_due", "lane", "due_at"),
    info={"storage": QUEUE_STORAGE},
)

OUTCOME = sa.Table(
    "command_outcome",
    metadata,
    uuid_column("command_id", primary_key=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("reply_partition", sa.SmallInteger, nullable=False, server_default="-1"),
    sa.Column("deferred", sa.Boolean, nullable=False, server_default="false"),
    sa.Index("outcome_age", "created_at"),
)
"""What became of a command from outside: status pending (inside its transaction, or `deferred`), succeeded, rejected
or failed; body is the result, or the problem with its `code`, `detail`, `status` and `errors`. `reply_partition`: where
whoever waits for it listens, -1 for nobody."""

DEAD_LETTER = sa.Table(
    "dead_letter",
    metadata,
    uuid_column("id", primary_key=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("partition", sa.SmallInteger, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("message_id", sa.Text, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("headers", sa.LargeBinary, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("body_bytes", sa.Integer, nullable=False),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("redrives", sa.SmallInteger, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Index("dead_letter_newest", "at"),
)
"""Refused records, for `ap dlq`: status dead, retried or dropped; `at`: when it last died. Bodies are cut at 64 KiB."""
