"""Views: how the rows of a table are shown. One typed dictionary is the JSON, the OpenAPI schema and the example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, get_args

from pydantic import GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema

from infra.db import TableSpec
from schemas.examples import Example
from schemas.messages import JsonObject

Uuid = Annotated[
    str,
    WithJsonSchema({"type": "string", "format": "uuid"}),
    Example("6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"),
]
Moment = Annotated[
    str | None,
    WithJsonSchema({"type": ["string", "null"], "format": "date-time"}),
    Example("2026-05-04T09:30:00.123456Z"),
]
"""RFC 3339 in UTC, as `infra.db.instant` writes it; null before it has come."""
Tenant = Annotated[str, Example("t1")]


@dataclass(frozen=True, slots=True)
class OneOf:
    """In `Annotated`: the values of a text that rows keep as such; a `Literal` of the wire contract."""

    literal: Any

    @property
    def values(self) -> tuple[str, ...]:
        return get_args(self.literal)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonObject:
        return {"type": "string", "enum": list(self.values)}


R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class View(Generic[R]):
    """A kind of resource: whose rows it shows, and as what.

    `shape` is the typed dictionary that `of` makes of a row: JSON as it is, which no class's instance gives as
    fast. `kind`: only rows of it are such a resource. `what` names it in refusals.
    """

    what: str
    spec: TableSpec
    shape: type[Any]
    of: Callable[[R], Mapping[str, Any]]
    kind: str | None = None

    def matches(self, row: Any) -> bool:
        return self.kind is None or row.kind == self.kind
