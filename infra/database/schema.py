"""The schema as SQL, made from the declared tables, and the fingerprint that tells it from any other."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from infra.database.tables import metadata
from schemas import registry
from schemas.messages import SCHEMA_VERSION, Message

REMOVED = """
CREATE FUNCTION ap_not_removed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN  -- By now an insert has waited for whoever was removing the row, and this sees what that has committed.
  IF EXISTS (SELECT FROM made m JOIN tombstone t ON t.id = m.id) THEN
    RAISE unique_violation USING MESSAGE = 'an id of a removed aggregate is not used again';
  END IF;
  RETURN NULL;
END $$
"""

REMOVABLE = ("run", "human_task")
"""Heads of aggregates that retention removes."""
NOT_REMOVED = """
CREATE TRIGGER not_removed AFTER INSERT ON {} REFERENCING NEW TABLE AS made
  FOR EACH STATEMENT EXECUTE FUNCTION ap_not_removed()
"""

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

FINGERPRINT_DIGITS = 12


def statements(tables: sa.MetaData = metadata) -> list[str]:
    """Everything but roles, grants and row level security: these are applied after every migration."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    made = []
    for table in tables.sorted_tables:
        made.append(str(CreateTable(table).compile(dialect=dialect)))
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        made += [str(CreateIndex(index).compile(dialect=dialect)) for index in indexes]
        if table.info.get("storage"):
            made.append(f"ALTER TABLE {table.name} SET ({table.info['storage']})")
    made += [FENCE, REMOVED, *map(NOT_REMOVED.format, REMOVABLE)]
    return [statement.strip() for statement in made]


@functools.cache
def fingerprint() -> str:
    """A hash over the declared tables and over what the log may hold: two programs of one fingerprint share data."""
    messages = {**registry.COMMANDS, **registry.EVENTS}
    wire = {name: wire_schema(message) for name, message in messages.items()}
    return fingerprint_of(statements(), {"version": SCHEMA_VERSION, "messages": wire})


def fingerprint_of(made: list[str], wire: Any) -> str:
    document = orjson.dumps([made, wire], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(document).hexdigest()[:FINGERPRINT_DIGITS]


def wire_schema(message: type[Message]) -> Any:
    """What the wire may carry; words for people do not count."""
    return _without(message.model_json_schema(mode="validation"), ("description", "title"))


def _without(schema: Any, names: tuple[str, ...]) -> Any:
    """The schema without these keywords; a field of such a name stays."""
    if isinstance(schema, list):
        return [_without(each, names) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for name, each in schema.items():
        if name in ("properties", "$defs"):
            kept[name] = {field: _without(inner, names) for field, inner in each.items()}
        elif name not in names:
            kept[name] = _without(each, names)
    return kept
