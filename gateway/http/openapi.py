"""The OpenAPI 3.1 document, written from the route tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import TypeAdapter

from gateway.http.commands import CommandView
from gateway.http.lists import LIMIT_DEFAULT, LIMIT_MAX
from gateway.http.operations import body_name, description, operation_id, shape_of, shown_name, summary
from gateway.http.ports import SCAN_ROWS_MAX
from gateway.http.problems import ProblemBody
from gateway.http.routing import PUBLIC, Action, Listing, Route, Write, path_names
from gateway.time_travel import ListThen, ReadThen, openapi_parameters
from gateway.until import StartRun, openapi_parameter
from infra.db import Column
from schemas.examples import example_of_shape
from schemas.messages import JsonObject

TITLE = "agent-platform"
_REF = "#/components/schemas/{model}"
_PROBLEMS = {
    400: "The body or a header is malformed",
    401: "No valid API key",
    403: "Not allowed, or another tenant's, or from a web page of another host",
    404: "There is no such object",
    409: "The object is not in a state that allows this",
    410: "It has ended and was removed by retention",
    413: "The body is too large",
    415: "The body is not JSON, or is compressed",
    422: "A value is not acceptable; `errors` names each field by JSON pointer",
    429: "Too many requests or commands in flight",
    503: "Kafka or Postgres does not answer; with `command_id`: the command may have been taken",
}
_SCANNED = f"Looked for among the next {SCAN_ROWS_MAX} of the list: a page that has a next one may be short, or empty"
_SECURITY: list[JsonObject] = [{"bearer": []}, {"apiKey": []}]


def openapi_document(routes: Sequence[Route]) -> dict[str, Any]:
    """Raises ValueError if two operations, or two components, have one name; LookupError for a missing example."""
    paths: dict[str, dict[str, Any]] = {}
    names = Counter(map(operation_id, routes))
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two operations are called {', '.join(twice)}")
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


def _version() -> str:
    try:
        return version("agent-platform")
    except PackageNotFoundError:
        return "0"


def _operation(route: Route) -> JsonObject:
    parameters = [_path_parameter(name) for name in path_names(route.path)]
    if route.permission != PUBLIC:
        parameters.extend(_identity_parameters())
    operation: JsonObject = {
        "operationId": operation_id(route),
        "tags": [_tag(route)],
        "summary": summary(route),
        "security": [] if route.permission == PUBLIC else _SECURITY,
        "x-permission": route.permission,
    }
    if text := description(route):
        operation["description"] = text
    if isinstance(route, Write | Action):
        parameters.extend(_write_parameters())
        operation["requestBody"] = _request_body(route)
    if isinstance(route, Listing):
        parameters.extend(_list_parameters(route))
    if isinstance(route, ReadThen | ListThen):
        parameters.extend(openapi_parameters())
    if isinstance(route, StartRun):
        parameters.append(openapi_parameter())
    operation["parameters"] = parameters
    operation["responses"] = _responses(route)
    return operation


def _tag(route: Route) -> str:
    return route.path.removeprefix("/gateway").strip("/").split("/")[0]


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
    if route.rows.after is not None:
        number = {"type": "integer", "minimum": 0}
        parameters.append(
            {"name": route.rows.after, "in": "query", "schema": number, "description": "In place of a cursor"}
        )
    for name in (name for name in route.rows.all_filters if name not in path_names(route.path)):
        schema = _column_schema(route.rows.column(name), route.rows.choices.get(name))
        parameters.append({"name": name, "in": "query", "required": name == route.rows.needs, "schema": schema})
    for parameter in parameters:
        if parameter["name"] in route.rows.scanned:
            parameter["description"] = _SCANNED
    return parameters


def _column_schema(column: Column, choices: tuple[str, ...] | None) -> JsonObject:
    if choices is not None:
        return {"type": "string", "enum": list(choices)}
    if column.pg_type == "uuid":
        return {"type": "string", "format": "uuid"}
    return {"type": "integer"} if column.pg_type in ("int2", "int4") else {"type": "string"}


def _request_body(route: Write[Any] | Action[Any]) -> JsonObject:
    content = {"schema": _ref(body_name(route)), "example": route.takes.example()}
    return {"required": route.takes.is_required(), "content": {"application/json": content}}


def _ref(name: str) -> JsonObject:
    return {"$ref": _REF.format(model=name)}


def _responses(route: Route) -> JsonObject:
    write = isinstance(route, Write | Action)
    shown = _ref(shown_name(route) + "Page" if isinstance(route, Listing) else shown_name(route))
    responses: JsonObject = {
        str(route.status): {"description": "Done", "content": {"application/json": {"schema": shown}}}
    }
    if write:
        responses["202"] = {
            "description": "Taken; what becomes of it is not known yet",
            "headers": {"location": {"schema": {"type": "string"}}},
            "content": {"application/json": {"schema": _ref("Command")}},
        }
    problem = {"application/problem+json": {"schema": _ref("Problem")}}
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
    missing = path_names(route.path) or isinstance(route, ListThen)
    return (400, 401, 403, 404, 422, 429, 503) if missing else (400, 401, 403, 422, 429, 503)


def _schemas(routes: Sequence[Route]) -> JsonObject:
    """Components of all bodies, views and pages. Raises ValueError for a name that means two things."""
    schemas: JsonObject = {}
    for route in routes:
        _add(schemas, shown_name(route), _schema_of(shape_of(route)))
        if isinstance(route, Write | Action):
            _add(schemas, body_name(route), route.takes.schema(_REF))
        if isinstance(route, Listing):
            _add(schemas, shown_name(route) + "Page", _page_of(shown_name(route)))
    for name, shape in (("Command", CommandView), ("Problem", ProblemBody)):
        _add(schemas, name, _schema_of(shape))
    return schemas


def _add(schemas: JsonObject, name: str, schema: JsonObject) -> None:
    for inner, each in {name: schema, **schema.pop("$defs", {})}.items():
        if schemas.setdefault(inner, each) != each:
            raise ValueError(f"two components are called {inner}")


def _schema_of(shape: type[Any]) -> JsonObject:
    schema = TypeAdapter(shape).json_schema(mode="serialization", ref_template=_REF)
    schema.pop("title", None)
    return schema | {"example": example_of_shape(shape)}


def _page_of(name: str) -> JsonObject:
    items = {"type": "array", "items": _ref(name)}
    cursor = {"type": ["string", "null"], "description": "`cursor` of the next page; null on the last one"}
    return {
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {"items": items, "next_cursor": cursor},
    }
