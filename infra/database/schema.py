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

INDEXES = """
CREATE INDEX event_unsent ON event (lane, position);
CREATE INDEX timer_due ON timer (lane, due_at);
CREATE INDEX outcome_age ON command_outcome (created_at);
CREATE INDEX inbox_age ON inbox (at);
CREATE INDEX dead_letter_newest ON dead_letter (at);
CREATE INDEX definition_newest ON definition (tenant_id, kind, created_at, id);
CREATE INDEX definition_version_newest ON definition_version (tenant_id, kind, created_at, id);
CREATE INDEX definition_version_of ON definition_version (definition_id);
CREATE INDEX run_newest ON run (tenant_id, created_at, id);
CREATE INDEX run_of_workflow ON run (tenant_id, workflow_id, created_at, id);
CREATE INDEX run_of_session ON run (tenant_id, session_id, created_at, id) WHERE session_id IS NOT NULL;
CREATE INDEX run_ended ON run (kind, ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX node_run_of ON node_run (run_id);
CREATE INDEX node_run_ready ON node_run (kind, tenant_id, created_at) WHERE listed = 1;
CREATE INDEX node_run_leased ON node_run (lane) WHERE listed = 2;
CREATE INDEX run_mark_of ON run_mark (run_id);
CREATE INDEX api_key_newest ON api_key (tenant_id, created_at, id);
CREATE INDEX audit_age ON gateway_request_audit (created_at)
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

HOT = {
    "run": "fillfactor = 70",
    "node_run": "fillfactor = 50",
    "run_mark": "fillfactor = 70",
    "lane": "fillfactor = 30, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000",
    "outbox": "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000",
    "timer": "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000",
}

FINGERPRINT_DIGITS = 12


def statements(tables: sa.MetaData = metadata) -> list[str]:
    """Everything but roles, grants and row level security: these are applied after every migration."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    made = []
    for table in tables.sorted_tables:
        made.append(str(CreateTable(table).compile(dialect=dialect)))
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        made += [str(CreateIndex(index).compile(dialect=dialect)) for index in indexes]
    made += INDEXES.split(";")
    made += [FENCE, REMOVED, NOT_REMOVED]
    made += [f"ALTER TABLE {table} SET ({options})" for table, options in HOT.items()]
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
