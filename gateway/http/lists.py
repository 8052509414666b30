"""Lists: filters and keyset cursors from a query string, to one page of rows."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.requests import Request

from gateway.http.identity import identifier
from gateway.http.ports import Condition, Page
from gateway.http.problems import invalid_field
from infra.db import Column, TableSpec
from schemas.messages import UUID_PATTERN, JsonObject

LIMIT_DEFAULT = 50
LIMIT_MAX = 200
CURSOR_CHARACTERS_MAX = 1024
COMMON_PARAMETERS = ("limit", "cursor", "tenant_id")
_INT4_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ListOf:
    """A table as a list: its order, which columns may be filtered by, how a row is shown.

    `where` always holds; `special` says what certain values of a filter mean instead of equality. `others`:
    parameters that are no filters; who serves the list knows what they mean.
    """

    spec: TableSpec
    show: Callable[[Any], JsonObject]
    filters: tuple[str, ...]
    order: tuple[str, ...] = ("created_at", "id")
    descending: bool = True
    where: tuple[Condition, ...] = ()
    equal: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    special: Mapping[str, Mapping[str, Condition]] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def column(self, filter_name: str) -> Column:
        return _column(self.spec, self.renamed.get(filter_name, filter_name))


def page_of(listing: ListOf, request: Request) -> Page:
    """The page that a request asks for, with one row more, which tells whether there is a next one.

    Raises Problem 422 for an unknown parameter, a value of the wrong type, a bad limit or cursor.
    """
    equal = dict(listing.equal)
    where = listing.where
    limit, after = LIMIT_DEFAULT, None
    for name, value in request.query_params.multi_items():
        if name == "limit":
            limit = _limit(value)
        elif name == "cursor":
            after = _decoded(value, listing)
        elif name in listing.filters:
            special = listing.special.get(name, {}).get(value)
            if special is not None:
                where = (*where, special)
            else:
                column = listing.column(name)
                equal[column.name] = _value(value, column, f"/query/{name}")
        elif name != "tenant_id" and name not in listing.others:
            known = ", ".join((*COMMON_PARAMETERS, *listing.filters, *listing.others))
            raise invalid_field(f"/query/{name}", "unknown_parameter", f"this list knows {known}")
    return Page(
        spec=listing.spec,
        order=listing.order,
        limit=limit + 1,
        descending=listing.descending,
        equal=equal,
        where=where,
        after=after,
    )


def shown_page(listing: ListOf, page: Page, rows: Any) -> JsonObject:
    """`items` and the cursor of the next page, None on the last one."""
    items = list(rows)
    more = len(items) == page.limit
    if more:
        items.pop()
    return {
        "items": [listing.show(row) for row in items],
        "next_cursor": _encoded(listing, items[-1]) if more else None,
    }


def _column(spec: TableSpec, name: str) -> Column:
    return next(column for column in spec.columns if column.name == name)


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= LIMIT_MAX:
        raise invalid_field("/query/limit", "out_of_range", f"must be a whole number from 1 to {LIMIT_MAX}")
    return int(text)


def _value(text: str, column: Column, pointer: str) -> Any:
    if column.pg_type == "uuid":
        if not UUID_PATTERN.match(text.lower()):
            raise invalid_field(pointer, "invalid_uuid", "must be a uuid")
        return text.lower()
    if column.pg_type in ("int2", "int4"):
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            raise invalid_field(pointer, "invalid_number", "must be a whole number")
        return int(text)
    return identifier(text, pointer)


def _encoded(listing: ListOf, row: Any) -> str:
    values = orjson.dumps([getattr(row, name) for name in listing.order])
    return base64.urlsafe_b64encode(values).rstrip(b"=").decode()


def _decoded(cursor: str, listing: ListOf) -> tuple[Any, ...]:
    try:
        if len(cursor) > CURSOR_CHARACTERS_MAX:
            raise ValueError(cursor)
        values = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
        if not isinstance(values, list) or len(values) != len(listing.order):
            raise ValueError(cursor)
        for name, value in zip(listing.order, values, strict=True):
            _check(value, _column(listing.spec, name))
    except (ValueError, binascii.Error):
        raise invalid_field("/query/cursor", "invalid_cursor", "must be the next_cursor of an earlier page") from None
    return tuple(values)


def _check(value: Any, column: Column) -> None:
    """Raise ValueError for a value that this column cannot be compared with."""
    if column.pg_type == "uuid":
        good = isinstance(value, str) and UUID_PATTERN.match(value) is not None
    elif column.pg_type == "float8":
        good = isinstance(value, int | float) and not isinstance(value, bool)
    elif column.pg_type in ("int2", "int4"):
        good = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _INT4_MAX
    else:
        good = isinstance(value, str) and "\x00" not in value
    if not good:
        raise ValueError(column.name)
