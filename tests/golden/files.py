"""The golden files: one for each message, one for the envelope, one for the API's operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from gateway.http.operations import operation_id
from gateway.routes import ROUTES
from schemas import registry
from schemas.envelope import Envelope
from schemas.messages import JsonObject, Message
from tests.golden.canonical import ID, examples, schema_sha256

FOLDER = Path(__file__).parent
ENVELOPES = FOLDER / "envelope.json"
OPERATIONS = FOLDER / "operations.txt"
MESSAGES: dict[str, type[Message]] = {**registry.COMMANDS, **registry.EVENTS}

SENT = {
    "command from outside": Envelope(
        id=ID, type="runtime.create_run", tenant_id="t1", subject=ID, time="2026-01-02T03:04:05.000006Z",
        correlation_id="request-1", actor="key:1", fingerprint="0" * 64, reply_partition=3,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    "command from a decision, re-driven": Envelope(
        id=ID, type="runtime.continue_run", tenant_id="t1", subject=ID, causation_id=ID, redrive=2,
    ),
    "event": Envelope(
        id=f"{ID}/7", type="runtime.run_completed", tenant_id="t1", subject=ID, time="2026-01-02T03:04:05.000006Z",
        causation_id=ID, sequence=7,
    ),
    "of another schema version": Envelope(id=ID, type="runtime.create_run", tenant_id="t1", schema_version=2),
}  # fmt: skip


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.json"


def read(path: Path) -> Any:
    return orjson.loads(path.read_bytes())


def message_files() -> list[Path]:
    return sorted(path for path in FOLDER.glob("*.json") if path != ENVELOPES)


def headers() -> JsonObject:
    return {name: [[key, value.decode()] for key, value in envelope.headers()] for name, envelope in SENT.items()}


def write_all() -> list[Path]:
    """Write what is missing or has changed; examples that are there are kept. Which files those are."""
    written = []
    for name, message in sorted(MESSAGES.items()):
        path = path_of(name)
        known = read(path)["examples"] if path.exists() else []
        kept = known + [each for each in examples(message) if each not in known]
        kind = "command" if name in registry.COMMANDS else "event"
        written += _write(path, {"type": name, "kind": kind, "schema_sha256": schema_sha256(message), "examples": kept})
    names = "".join(f"{line}\n" for line in operations())
    return written + _write(ENVELOPES, headers()) + _write_text(OPERATIONS, names.encode())


def operations() -> list[str]:
    """The API's operations: their ids, and the path that each stands for."""
    return sorted(f"{operation_id(route)} {route.method} {route.path}" for route in ROUTES)


def _write(path: Path, document: JsonObject) -> list[Path]:
    return _write_text(path, orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _write_text(path: Path, text: bytes) -> list[Path]:
    if path.exists() and path.read_bytes() == text:
        return []
    path.write_bytes(text)
    return [path]
