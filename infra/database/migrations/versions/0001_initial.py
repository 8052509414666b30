"""The first schema: made from the declared tables until it is released, fixed SQL from then on."""

from __future__ import annotations

from alembic import op

from infra.database.schema import statements

revision = "0001"
down_revision = None


def upgrade() -> None:
    for statement in statements():
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("the first schema has nothing before it")
