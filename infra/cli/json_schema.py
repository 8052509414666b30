"""The wire contract as JSON Schema (2020-12): envelope, commands, events, workflow DSL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from schemas import registry
from schemas.envelope import HEADER_BYTES_MAX
from schemas.messages import SCHEMA_VERSION, Message
from schemas.workflow.dsl_reader import NODE_ID_LENGTH_MAX
from schemas.workflow.node_types import ALIASES, NODE_TYPES, NodeConfig, field_names

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def documents() -> dict[str, dict[str, Any]]:
    """Every schema by the path of its file."""
    found = {"envelope.json": envelope(), "workflow.json": workflow()}
    for folder, messages in (("commands", registry.COMMANDS), ("events", registry.EVENTS)):
        for name, message in sorted(messages.items()):
            found[f"{folder}/{name}.json"] = message_schema(message)
    return found


def write(folder: Path) -> int:
    """Write every schema under `folder`; how many."""
    every = documents()
    for path, document in every.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return len(every)


def message_schema(message: type[Message]) -> dict[str, Any]:
    """The body of a record. Its `type` travels in the envelope; the body may repeat it."""
    name = message.model_fields["type"].default
    schema = message.model_json_schema(mode="validation")
    return {"$schema": DIALECT, "$id": f"urn:agent-platform:{name}:{SCHEMA_VERSION}"} | schema


def envelope() -> dict[str, Any]:
    """The headers of a record as an object of their names: CloudEvents 1.0 in Kafka binary mode."""
    text = {"type": "string", "minLength": 1, "maxLength": HEADER_BYTES_MAX}
    number = {"type": "string", "pattern": r"^[0-9]{1,15}$"}
    return {
        "$schema": DIALECT,
        "$id": f"urn:agent-platform:envelope:{SCHEMA_VERSION}",
        "title": "Envelope",
        "description": "Headers of a record; their values are UTF-8 text. Headers not named here are ignored.",
        "type": "object",
        "required": ["ce_id", "ce_type"],
        "properties": {
            "ce_specversion": {"const": "1.0"},
            "ce_id": text | {"description": "a command's uuid; on ingress any 1 to 128 printable ASCII characters"},
            "ce_type": text | {"description": "the name of the command or event"},
            "ce_source": text,
            "ce_tenantid": text | {"maxLength": 128},
            "ce_subject": text | {"description": "the aggregate's id, which is also the record's key"},
            "ce_time": {"type": "string", "format": "date-time"},
            "ce_correlationid": text,
            "ce_causationid": text,
            "ce_actor": text,
            "ce_schemaversion": number,
            "ce_sequence": number | {"description": "events: place in the aggregate's history, from 1"},
            "ce_redrive": number | {"description": "how often an operator has sent it again"},
            "ce_fingerprint": text | {"description": "commands from outside: what their id stands for"},
            "ce_replypartition": number | {"description": "the partition of `replies` where the sender listens"},
            "traceparent": {"type": "string", "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"},
        },
    }


def workflow() -> dict[str, Any]:
    """The DSL of a workflow. What one schema cannot say (references, templates, loops) publishing checks."""
    names = [*NODE_TYPES, *ALIASES]
    definitions: dict[str, Any] = {}
    rules = []
    for name in names:
        config = NODE_TYPES[ALIASES.get(name, name)]
        definitions[config.__name__] = _config(config, definitions)
        then = {"properties": {"config": {"$ref": f"#/$defs/{config.__name__}"}}}
        rules.append({"if": {"properties": {"type": {"const": name}}}, "then": then})
    node_id = {"type": "string", "minLength": 1, "maxLength": NODE_ID_LENGTH_MAX}
    node = {
        "type": "object",
        "required": ["id", "type"],
        "additionalProperties": False,
        "properties": {"id": node_id, "type": {"enum": names}, "config": {"type": ["object", "null"]}},
        "allOf": rules,
    }
    edge = {
        "type": "object",
        "required": ["source", "target"],
        "additionalProperties": False,
        "properties": {"source": node_id, "target": node_id, "condition": {"type": ["string", "boolean", "null"]}},
    }
    return {
        "$schema": DIALECT,
        "$id": f"urn:agent-platform:workflow:{SCHEMA_VERSION}",
        "title": "Workflow",
        "type": "object",
        "required": ["nodes", "edges"],
        "properties": {"nodes": {"type": "array", "items": node}, "edges": {"type": "array", "items": edge}},
        "$defs": definitions,
    }


def _config(config: type[NodeConfig], definitions: dict[str, Any]) -> dict[str, Any]:
    """A node type's config, with the other names that its fields go by."""
    schema = config.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= schema.pop("$defs", {})
    properties = schema["properties"]
    required = schema.pop("required", [])
    for alias, name in field_names(config).items():
        properties.setdefault(alias, properties[name])
    spellings = [[alias for alias, target in field_names(config).items() if target == name] for name in required]
    if spellings:
        schema["allOf"] = [{"anyOf": [{"required": [alias]} for alias in names]} for names in spellings]
    return schema
