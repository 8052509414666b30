"""One example of a message that sets every field to something other than its default, and one with as few as may be."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from infra.cli.json_schema import message_schema
from infra.database.schema import wire_schema
from schemas.messages import JsonObject, Message

ID = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"
BY_PATTERN = {"^[0-9a-f]{64}$": "0" * 64, "^[a-z*_:-]+$": "gateway:runtime:read"}


def examples(message: type[Message]) -> list[JsonObject]:
    """The smallest body and the fullest, as this code encodes them."""
    schema = message_schema(message)
    required = [name for name in schema.get("required", ()) if name != "type"]
    smallest = {name: _value(schema["properties"][name], schema, name) for name in required}
    fullest = {name: _value(each, schema, name) for name, each in schema["properties"].items() if name != "type"}
    found = [_encoded(message, smallest), _encoded(message, fullest)]
    return found[:1] if found[0] == found[1] else found


def schema_sha256(message: type[Message]) -> str:
    """The hash of what the wire may carry; words for people do not count."""
    return hashlib.sha256(orjson.dumps(wire_schema(message), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _encoded(message: type[Message], body: JsonObject) -> JsonObject:
    encoded: JsonObject = orjson.loads(message.model_validate_json(orjson.dumps(body)).encode())
    if encoded != body:
        raise AssertionError(f"{message.__name__} turns {body} into {encoded}")
    return encoded


def _value(schema: JsonObject, root: JsonObject, name: str) -> Any:
    """A value that fits and is not the default."""
    default = schema.get("default")
    if "$ref" in schema:
        return _value(root["$defs"][schema["$ref"].rpartition("/")[2]], root, name)
    if "anyOf" in schema:
        return _value(next(each for each in schema["anyOf"] if each.get("type") != "null"), root, name)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return next(each for each in schema["enum"] if each != default)
    match schema.get("type"):
        case "string":
            fitting = ID if name == "id" or name.endswith("_id") else f"some {name}"
            return BY_PATTERN.get(schema.get("pattern", ""), fitting)
        case "integer":
            return (default or 0) + max(1, schema.get("minimum", 0))
        case "number":
            return (default or 0) + 1.5
        case "boolean":
            return not default
        case "array":
            return [_value(schema["items"], root, name)] if schema.get("items") else [1]
        case "object" if schema.get("properties"):
            return {inner: _value(each, root, inner) for inner, each in schema["properties"].items()}
        case _:
            return {"a": [1, "\u00e9", None]}
