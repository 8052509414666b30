"""Lists: filters and keyset cursors from a query string, to one page of rows."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, get_type_hints

import orjson
from starlette.requests import Request

from gateway.http.identity import identifier
from gateway.http.ports import Condition, Page
from gateway.http.problems import invalid_field
from infra.db import Column, TableSpec
from projections.views import OneOf, View
from schemas.messages import UUID_PATTERN, JsonObject

LIMIT_DEFAULT = 50
LIMIT_MAX = 200
CURSOR_CHARACTERS_MAX = 1024
COMMON_PARAMETERS = ("limit", "cursor", "tenant_id")
_INT4_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ListOf:
    """A table as a list: how its rows are shown, their order, which columns may be filtered by.

    `filters` name columns that an index finds rows by. `within`: further ones, each only beside the filter that has
    narrowed the list to the rows of one aggregate. `needs`: the filter without which there would be no index.
    `where` always holds; `special` says what certain values of a filter mean instead of equality. `renamed`: the
    columns of filters that the API calls otherwise. `others`: parameters that are no filters; who serves the list
    knows what they mean.
    """

    view: View[Any]
    filters: tuple[str, ...]
    within: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs: str | None = None
    order: tuple[str, ...] = ("created_at", "id")
    descending: bool = True
    where: tuple[Condition, ...] = ()
    equal: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    special: Mapping[str, Mapping[str, Condition]] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    choices: Mapping[str, tuple[str, ...]] = field(init=False)
    """The values that a filter may have, where the view says so."""

    def __post_init__(self) -> None:
        fields = get_type_hints(self.view.shape, include_extras=True)
        choices = {name: _choices(fields[name]) for name in self.all_filters if name in fields}
        object.__setattr__(self, "choices", {name: values for name, values in choices.items() if values})

    @property
    def spec(self) -> TableSpec:
        return self.view.spec

    @property
    def all_filters(self) -> tuple[str, ...]:
        return (*self.filters, *chain.from_iterable(self.within.values()))

    def column(self, filter_name: str) -> Column:
        return _column(self.spec, self.renamed.get(filter_name, filter_name))


def _choices(annotation: Any) -> tuple[str, ...]:
    return next((each.values for each in getattr(annotation, "__metadata__", ()) if isinstance(each, OneOf)), ())


def page_of(listing: ListOf, request: Request) -> Page:
    """The page that a request asks for, with one row more, which tells whether there is a next one.

    Raises Problem 422 for an unknown parameter, a value of the wrong type, a bad limit or cursor.
    """
    equal = dict(listing.equal)
    where = listing.where
    limit, after = LIMIT_DEFAULT, None
    given = request.query_params.multi_items()
    for name, value in given:
        if name == "limit":
            limit = _limit(value)
        elif name == "cursor":
            after = _decoded(value, listing)
        elif name in listing.all_filters:
            special = listing.special.get(name, {}).get(value)
            if special is not None:
                where = (*where, special)
            else:
                column = listing.column(name)
                equal[column.name] = _value(value, column, f"/query/{name}", listing.choices.get(name))
        elif name != "tenant_id" and name not in listing.others:
            known = ", ".join((*COMMON_PARAMETERS, *listing.all_filters, *listing.others))
            raise invalid_field(f"/query/{name}", "unknown_parameter", f"this list knows {known}")
    _check_narrowed(listing, {name for name, _ in given})
    return Page(
        spec=listing.spec,
        order=listing.order,
        limit=limit + 1,
        descending=listing.descending,
        equal=equal,
        where=where,
        after=after,
    )


def _check_narrowed(listing: ListOf, given: Collection[str]) -> None:
    """Raise Problem 422 for a query that no index could answer."""
    if listing.needs is not None and listing.needs not in given:
        raise invalid_field(f"/query/{listing.needs}", "missing", "must be given: the list is one of its rows only")
    for outer, names in listing.within.items():
        for name in names:
            if name in given and outer not in given:
                raise invalid_field(f"/query/{name}", "needs_filter", f"is known beside {outer} only")


def shown_page(listing: ListOf, page: Page, rows: Any) -> JsonObject:
    """`items` and the cursor of the next page, None on the last one."""
    items, show = list(rows), listing.view.of
    more = len(items) == page.limit
    if more:
        items.pop()
    return {
        "items": [show(row) for row in items],
        "next_cursor": _encoded(listing, items[-1]) if more else None,
    }


def _column(spec: TableSpec, name: str) -> Column:
    return next(column for column in spec.columns if column.name == name)


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= LIMIT_MAX:
        raise invalid_field("/query/limit", "out_of_range", f"must be a whole number from 1 to {LIMIT_MAX}")
    return int(text)


def _value(text: str, column: Column, pointer: str, choices: tuple[str, ...] | None) -> Any:
    if choices is not None and text not in choices:
        raise invalid_field(pointer, "unknown_value", f"must be one of {', '.join(choices)}")
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
