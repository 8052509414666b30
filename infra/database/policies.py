"""Who may do what with which table: roles, grants and row level security, made so after every migration.

What is already so is left alone: a policy's change would wait for whoever works with its table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import sqlalchemy as sa

from infra.db import PARTS, Part, role_of
from infra.settings import SettingsError

OPTIONS: Mapping[Part, str] = {"worker": "BYPASSRLS", "gateway": "NOBYPASSRLS", "lookup": "NOBYPASSRLS"}

TENANT = """
CREATE OR REPLACE FUNCTION ap_tenant() RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE tenant text := current_setting('app.tenant_id', true);
BEGIN
  IF coalesce(tenant, '') = '' THEN  -- After a transaction-local setting a session has '', not null.
    RAISE EXCEPTION 'no tenant is set for this transaction' USING ERRCODE = 'AP002';
  END IF;
  RETURN tenant;
END $$
"""
"""No tenant set is an error, never all rows and never a silent none."""

OWN = "(tenant_id = ( SELECT ap_tenant() AS ap_tenant))"
"""As Postgres itself writes the condition: so what is there can be compared with what is wanted."""

_THERE = """SELECT c.relname AS name, c.relrowsecurity AND c.relforcerowsecurity AS forced, array(
  SELECT ROW(p.polname, p.polcmd, pg_get_userbyid(p.polroles[1]), cardinality(p.polroles), p.polpermissive,
    pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))::text
  FROM pg_policy p WHERE p.polrelid = c.oid ORDER BY p.polname) AS policies,
  array(SELECT p.polname FROM pg_policy p WHERE p.polrelid = c.oid) AS names
FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'"""
_STRANGERS = r"""SELECT DISTINCT r.rolname AS role FROM pg_class c, aclexplode(c.relacl) AS a
JOIN pg_roles r ON r.oid = a.grantee
WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY($2)
  AND r.rolname <> ALL($1) AND r.rolname ~ '^ap_(worker|gateway|lookup)_'"""
"""Roles of other databases: a copy of a database brings along what its original's may do."""
_AS_TEXT = 'SELECT ROW($1::name, $2::"char", $3::name, 1, true, $4::text, $5::text)::text'


class RolesRefused(SettingsError):
    """The roles of this database cannot be made or used by its user."""


@dataclass(frozen=True, slots=True)
class Access:
    """The tables and what each part of the platform may do with them; workers may read and write them all.

    A table with a column `tenant_id` shows a gateway the rows of its transaction's tenant only. `readable` and
    `insertable` are what gateways may do; `looked_up`: columns that are looked up over all tenants, None: all.
    """

    tables: Sequence[sa.Table]
    readable: Sequence[str] = ()
    insertable: Sequence[str] = ()
    looked_up: Mapping[str, Sequence[str] | None] | None = None

    @property
    def tenant_tables(self) -> tuple[str, ...]:
        return tuple(sorted(table.name for table in self.tables if "tenant_id" in table.columns))


@dataclass(frozen=True, slots=True)
class _Policy:
    name: str
    command: str
    role: str
    using: str
    check: str | None

    def sql(self, table: str) -> str:
        kind = {"*": "ALL", "r": "SELECT"}[self.command]
        check = f" WITH CHECK ({self.check})" if self.check else ""
        whose = f"ON {quoted(table)} FOR {kind} TO {quoted(self.role)}"
        return f"CREATE POLICY {self.name} {whose} USING ({self.using}){check}"


async def apply(connection: asyncpg.Connection, access: Access, database: str) -> None:
    """Make it so, in the connection's transaction. `database`: whose roles they are. Raises RolesRefused."""
    roles = {part: role_of(part, database) for part in PARTS}
    try:
        for part, role in roles.items():
            await _make_role(connection, role, OPTIONS[part])
    except asyncpg.InsufficientPrivilegeError as error:
        raise RolesRefused(
            [
                f"database {database}: its user may not make or use the roles {', '.join(roles.values())} ({error}):"
                " it needs CREATEROLE and BYPASSRLS, and if somebody else made these roles, they must go first"
            ]
        ) from None
    await connection.execute(TENANT)
    for statement in _grants(access, roles):
        await connection.execute(statement)
    tables = [table.name for table in access.tables]
    for row in await connection.fetch(_STRANGERS, list(roles.values()), tables):
        await connection.execute(f"REVOKE ALL ON {', '.join(map(quoted, tables))} FROM {quoted(row['role'])}")
    there = {row["name"]: row for row in await connection.fetch(_THERE)}
    for table in access.tenant_tables:
        await _protect(connection, there[table], _policies(access, roles, table))


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


async def _make_role(connection: asyncpg.Connection, role: str, options: str) -> None:
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role):
        await connection.execute(f"CREATE ROLE {quoted(role)} NOLOGIN {options}")
    if not await connection.fetchval("SELECT pg_has_role(current_user, $1::name, 'SET')", role):
        await connection.execute(f"GRANT {quoted(role)} TO CURRENT_USER")


def _grants(access: Access, roles: Mapping[Part, str]) -> Iterator[str]:
    """First none, then what is declared: what was granted once does not stay for ever."""
    worker, gateway, lookup = (quoted(roles[part]) for part in PARTS)
    tables = ", ".join(quoted(table.name) for table in access.tables)
    yield f"GRANT USAGE ON SCHEMA public TO {worker}, {gateway}, {lookup}"
    yield f"REVOKE ALL ON {tables} FROM {gateway}, {lookup}"
    yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {worker}"
    if access.readable:
        yield f"GRANT SELECT ON {', '.join(map(quoted, access.readable))} TO {gateway}"
    if access.insertable:
        yield f"GRANT INSERT ON {', '.join(map(quoted, access.insertable))} TO {gateway}"
    for table, columns in (access.looked_up or {}).items():
        granted = "" if columns is None else f" ({', '.join(map(quoted, columns))})"
        yield f"GRANT SELECT{granted} ON {quoted(table)} TO {lookup}"


def _policies(access: Access, roles: Mapping[Part, str], table: str) -> list[_Policy]:
    found = [_Policy("tenant", "*", roles["gateway"], OWN, OWN)]
    if table in (access.looked_up or {}):
        found.insert(0, _Policy("lookup", "r", roles["lookup"], "true", None))
    return found


async def _protect(connection: asyncpg.Connection, there: Any, wanted: Sequence[_Policy]) -> None:
    texts = [await connection.fetchval(_AS_TEXT, p.name, p.command.encode(), p.role, p.using, p.check) for p in wanted]
    if there["forced"] and there["policies"] == texts:
        return
    table = quoted(there["name"])
    for name in there["names"]:
        await connection.execute(f"DROP POLICY {quoted(name)} ON {table}")
    for policy in wanted:
        await connection.execute(policy.sql(there["name"]))
    await connection.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    await connection.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
