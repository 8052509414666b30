"""Alembic's entry: runs on the connection that `infra.database.migrate` hands over."""

from __future__ import annotations

from alembic import context

from infra.database.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()
