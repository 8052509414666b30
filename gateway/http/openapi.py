"""The OpenAPI 3.1 document, written from the route tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic.json_schema import models_json_schema

from gateway.http.examples import ANSWERS, REQUESTS
from gateway.http.lists import LIMIT_DEFAULT, LIMIT_MAX
from gateway.http.routing import PUBLIC, Action, Body, Listing, Route, Write
from gateway.time_travel import ListThen, ReadThen, openapi_parameters
from infra.db import Column
from schemas.messages import UUID_PATTERN, JsonObject

TITLE = "agent-platform"
_PARAMETER = re.compile(r"\{(\w+)\}")
_REF = "#/components/schemas/{model}"
_PROBLEMS = {
    400: "The body or a header is malformed",
    401: "No valid API key",
    403: "Not allowed, or another tenant's, or from a web page of another host",
    404: "There is no such object",
    409: "The object is not in a state that allows this",
    410: "The run has ended and was removed by retention",
    413: "The body is too large",
    415: "The body is not JSON, or is compressed",
    422: "A value is not acceptable; `errors` names each field by JSON pointer",
    429: "Too many requests or commands in flight",
    503: "Kafka or Postgres does not answer; with `command_id`: the command may have been taken",
}
_SECURITY: list[JsonObject] = [{"bearer": []}, {"apiKey": []}]


def openapi_document(routes: Sequence[Route]) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": _version(),
            "summary": "Every write is a command on Kafka, every read a query of what its events say",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(routes),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def operation_id(route: Route) -> str:
    """Such as `post_runtime_runs_run_id_cancel`: unique, and the same as long as the path is."""
    words = re.findall(r"\w+", route.path.removeprefix("/gateway"))
    return "_".join((route.method.lower(), *words)).replace("-", "_")


def _version() -> str:
    try:
        return version("agent-platform")
    except PackageNotFoundError:
        return "0"


def _operation(route: Route) -> JsonObject:
    parameters = [_path_parameter(name) for name in _PARAMETER.findall(route.path)]
    if route.permission != PUBLIC:
        parameters.extend(_identity_parameters())
    operation: JsonObject = {
        "operationId": operation_id(route),
        "tags": [_tag(route)],
        "summary": _summary(route),
        "security": [] if route.permission == PUBLIC else _SECURITY,
        "x-permission": route.permission,
    }
    if isinstance(route, Write | Action):
        parameters.extend(_write_parameters())
        operation["requestBody"] = _request_body(route.body)
    if isinstance(route, Listing):
        parameters.extend(_list_parameters(route))
    if isinstance(route, ReadThen | ListThen):
        parameters.extend(openapi_parameters())
    operation["parameters"] = parameters
    operation["responses"] = _responses(route)
    return operation


def _tag(route: Route) -> str:
    return route.path.removeprefix("/gateway").strip("/").split("/")[0]


def _summary(route: Route) -> str:
    what = re.sub(r"(?<!^)(?=[A-Z])", " ", route.shows).lower()
    if isinstance(route, Write | Action):
        words = re.sub(r"(?<!^)(?=[A-Z])", " ", route.body.__name__.removesuffix("Body")).lower()
        return words.capitalize()
    return f"List {what}s" if isinstance(route, Listing) else f"Show one {what}"


def _path_parameter(name: str) -> JsonObject:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "format": "uuid"},
    }


def _identity_parameters() -> list[JsonObject]:
    return [
        _header("x-tenant-id", "Must be the credential's tenant; names the tenant where none is required"),
        _header("x-user-id", "Who acts; with a credential it needs the scope act_as"),
        _header("x-request-id", "Reused, else made; comes back and is the correlation id of all that follows"),
        {"name": "tenant_id", "in": "query", "schema": {"type": "string", "maxLength": 128}},
    ]


def _write_parameters() -> list[JsonObject]:
    return [
        _header("idempotency-key", "Repeats of this request with the same key have one effect"),
        _header("prefer", "`wait=N` (at most 30 s) or `respond-async`"),
    ]


def _header(name: str, description: str) -> JsonObject:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


def _list_parameters(route: Listing) -> list[JsonObject]:
    limit = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}
    parameters: list[JsonObject] = [
        {"name": "limit", "in": "query", "schema": limit},
        {"name": "cursor", "in": "query", "schema": {"type": "string"}},
    ]
    filters = ((name, _column_schema(route.rows.column(name))) for name in route.rows.filters)
    parameters.extend({"name": name, "in": "query", "schema": schema} for name, schema in filters)
    return parameters


def _column_schema(column: Column) -> JsonObject:
    if column.pg_type == "uuid":
        return {"type": "string", "format": "uuid"}
    return {"type": "integer"} if column.pg_type in ("int2", "int4") else {"type": "string"}


def _request_body(body: type[Body]) -> JsonObject:
    required = any(field.is_required() for field in body.model_fields.values())
    content: JsonObject = {"schema": {"$ref": _REF.format(model=body.__name__)}}
    if body.__name__ in REQUESTS:
        content["example"] = REQUESTS[body.__name__]
    return {"required": required, "content": {"application/json": content}}


def _responses(route: Route) -> JsonObject:
    write = isinstance(route, Write | Action)
    shown = {"$ref": _REF.format(model=f"{route.shows}Page" if isinstance(route, Listing) else route.shows)}
    responses: JsonObject = {
        str(route.status): {"description": "Done", "content": {"application/json": {"schema": shown}}}
    }
    if write:
        responses["202"] = {
            "description": "Taken; what becomes of it is not known yet",
            "headers": {"location": {"schema": {"type": "string"}}},
            "content": {"application/json": {"schema": {"$ref": _REF.format(model="Accepted")}}},
        }
    problem = {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}}
    for status in _problem_statuses(route, write):
        responses[str(status)] = {"description": _PROBLEMS[status], "content": problem}
    return responses


def _problem_statuses(route: Route, write: bool) -> Iterable[int]:
    if route.permission == PUBLIC:
        return (400, 403, 503)
    if write:
        return tuple(_PROBLEMS)
    if isinstance(route, ReadThen):
        return (400, 401, 403, 404, 410, 422, 429, 503)
    missing = _PARAMETER.search(route.path) or isinstance(route, ListThen)
    return (400, 401, 403, 404, 422, 429, 503) if missing else (400, 401, 403, 422, 429, 503)


def _schemas(routes: Sequence[Route]) -> JsonObject:
    bodies = {route.body: None for route in routes if isinstance(route, Write | Action)}
    _, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    schemas: JsonObject = dict(definitions.get("$defs", {}))
    for route in routes:
        schemas[route.shows] = _like(ANSWERS[route.shows]) | {"example": ANSWERS[route.shows]}
        if isinstance(route, Listing):
            items = {"type": "array", "items": {"$ref": _REF.format(model=route.shows)}}
            schemas[f"{route.shows}Page"] = {
                "type": "object",
                "required": ["items", "next_cursor"],
                "properties": {"items": items, "next_cursor": {"type": ["string", "null"]}},
            }
    return schemas | _COMMON_SCHEMAS


def _like(example: JsonObject) -> JsonObject:
    """A schema for values such as `example`; fields that are null there may be anything."""
    return {"type": "object", "properties": {name: _type_of(value) for name, value in example.items()}}


def _type_of(value: Any) -> JsonObject:
    if isinstance(value, str):
        return {"type": "string", "format": "uuid"} if UUID_PATTERN.match(value) else {"type": ["string", "null"]}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer"}
    if isinstance(value, float):
        return {"type": "number"}
    if isinstance(value, list):
        return {"type": "array", "items": {}}
    return {}


_COMMON_SCHEMAS: JsonObject = {
    "Accepted": {
        "type": "object",
        "required": ["command_id", "status"],
        "properties": {
            "command_id": {"type": "string", "format": "uuid"},
            "status": {"const": "pending"},
        },
    },
    "Problem": {
        "type": "object",
        "description": "RFC 9457",
        "required": ["type", "title", "status", "code", "detail", "request_id"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {"type": "string"},
            "detail": {"type": "string"},
            "request_id": {"type": "string"},
            "command_id": {"type": "string", "format": "uuid"},
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["pointer", "code", "detail"],
                    "properties": {
                        "pointer": {"type": "string", "description": "RFC 6901"},
                        "code": {"type": "string"},
                        "detail": {"type": "string"},
                    },
                },
            },
        },
    },
}
