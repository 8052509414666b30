"""The first schema: tables, indexes, the fence, roles, row level security."""

from __future__ import annotations

from alembic import op

from gateway.http.postgres import LOOKUP_ROLE, READ_ROLE, lookup_grants
from infra.database.tables import LOOKED_UP, READABLE, TENANT_TABLES, metadata

revision = "0001"
down_revision = None

FENCE = """
CREATE FUNCTION ap_fence(wanted int2[], fenced int2[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE lost text;
BEGIN
  SELECT string_agg(w::text, ',') INTO lost FROM unnest(wanted) AS w WHERE w <> ALL (fenced);
  IF lost IS NOT NULL THEN
    RAISE EXCEPTION 'lanes % have moved on', lost USING ERRCODE = 'AP001', DETAIL = lost;
  END IF;
END $$
"""

TENANT = """
CREATE FUNCTION ap_tenant() RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE tenant text := current_setting('app.tenant_id', true);
BEGIN
  IF coalesce(tenant, '') = '' THEN  -- After a transaction-local setting a session has '', not null.
    RAISE EXCEPTION 'no tenant is set for this transaction' USING ERRCODE = 'AP002';
  END IF;
  RETURN tenant;
END $$
"""

REMOVED = """
CREATE FUNCTION ap_not_removed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN  -- By now an insert has waited for whoever was removing the row, and this sees what that has committed.
  IF EXISTS (SELECT FROM made m JOIN tombstone t ON t.id = m.id) THEN
    RAISE unique_violation USING MESSAGE = 'an id of a removed aggregate is not used again';
  END IF;
  RETURN NULL;
END $$
"""

NOT_REMOVED = """
CREATE TRIGGER not_removed AFTER INSERT ON run REFERENCING NEW TABLE AS made
  FOR EACH STATEMENT EXECUTE FUNCTION ap_not_removed()
"""


def _role(name: str, options: str) -> str:
    return f"""DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN CREATE ROLE {name} NOLOGIN {options}; END IF;
END $$"""


def upgrade() -> None:
    metadata.create_all(op.get_bind())
    for table in metadata.sorted_tables:
        if table.info.get("storage"):
            op.execute(f"ALTER TABLE {table.name} SET ({table.info['storage']})")
    op.execute(FENCE)
    op.execute(REMOVED)
    op.execute(NOT_REMOVED)
    _roles()
    _row_level_security()


def _roles() -> None:
    for name, options in ((READ_ROLE, "NOBYPASSRLS"), (LOOKUP_ROLE, "NOBYPASSRLS"), ("ap_worker", "BYPASSRLS")):
        op.execute(_role(name, options))
        op.execute(f"GRANT {name} TO CURRENT_USER")
        op.execute(f"GRANT USAGE ON SCHEMA public TO {name}")
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO ap_worker")
    op.execute(f"GRANT SELECT ON {', '.join(READABLE)} TO {READ_ROLE}")
    op.execute(f"GRANT SELECT ON lane TO {READ_ROLE}, {LOOKUP_ROLE}")
    op.execute(f"GRANT INSERT ON gateway_request_audit TO {READ_ROLE}")


def _row_level_security() -> None:
    """No tenant set is an error, never all rows and never a silent none."""
    op.execute(TENANT)
    for table in TENANT_TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        own = "tenant_id = (SELECT ap_tenant())"
        op.execute(f"CREATE POLICY tenant ON {table} TO {READ_ROLE} USING ({own}) WITH CHECK ({own})")
    for statement in lookup_grants(LOOKED_UP):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("the first schema has nothing before it")
