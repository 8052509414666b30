"""Lists: filters and keyset cursors from a query string, to one page of rows."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import orjson
from starlette.requests import Request

from gateway.http.identity import identifier
from gateway.http.ports import Condition, Found, Page
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

    `filters` name columns that an index finds rows by, the one that leaves the fewest first. `scanned`: columns
    whose values are looked for among the next SCAN_ROWS_MAX rows of the list. `needs`: the filter without which no
    index gives the list's order. `where` always holds; `special` says what certain values of a filter mean instead
    of equality. `renamed`: the columns of filters that the API calls otherwise. `others`: parameters that are no
    filters; who serves the list knows what they mean. `unless`: what holds unless that filter is given. `after`: the
    parameter by which a list in the order of one number may be begun behind any number, as by a cursor.
    """

    view: View[Any]
    filters: tuple[str, ...]
    scanned: tuple[str, ...] = ()
    needs: str | None = None
    order: tuple[str, ...] = ("created_at", "id")
    descending: bool = True
    where: tuple[Condition, ...] = ()
    equal: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    special: Mapping[str, Mapping[str, Condition]] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    unless: Mapping[str, Condition] = field(default_factory=dict)
    after: str | None = None
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
        return (*self.filters, *self.scanned)

    def column(self, filter_name: str) -> Column:
        return _column(self.spec, self.renamed.get(filter_name, filter_name))


def _choices(annotation: Any) -> tuple[str, ...]:
    return next((each.values for each in getattr(annotation, "__metadata__", ()) if isinstance(each, OneOf)), ())


def page_of(listing: ListOf, request: Request, ids: Mapping[str, str]) -> Page:
    """The page that a request asks for, with one row more, which tells whether there is a next one.

    `ids`: filters that the path gives.

    Raises Problem 422 for an unknown parameter, a value of the wrong type, a bad limit or cursor.
    """
    matching: dict[str, Any] = dict(ids)
    filters = [name for name in listing.all_filters if name not in ids]
    where = listing.where
    limit, after = LIMIT_DEFAULT, None
    for name, value in request.query_params.multi_items():
        if name == "limit":
            limit = _limit(value)
        elif name in ("cursor", listing.after):
            if after is not None:
                raise invalid_field(f"/query/{name}", "given_twice", f"give {name} once, and no other place to begin")
            after = _decoded(value, listing) if name == "cursor" else (_number(value, f"/query/{name}"),)
        elif name in filters:
            special = listing.special.get(name, {}).get(value)
            if special is not None:
                where = (*where, special)
            else:
                matching[name] = _value(value, listing.column(name), f"/query/{name}", listing.choices.get(name))
        elif name != "tenant_id" and name not in listing.others:
            known = ", ".join((*COMMON_PARAMETERS, *filters, *listing.others, *filter(None, (listing.after,))))
            raise invalid_field(f"/query/{name}", "unknown_parameter", f"this list knows {known}")
    where = (*where, *(condition for name, condition in listing.unless.items() if name not in matching))
    if listing.needs is not None and listing.needs not in matching:
        raise invalid_field(f"/query/{listing.needs}", "missing", "must be given: the list shows what belongs to one")
    found_by = next((name for name in (*ids, *listing.filters) if name in matching), None)
    indexed = {} if found_by is None else {listing.column(found_by).name: matching.pop(found_by)}
    return Page(
        spec=listing.spec,
        order=listing.order,
        limit=limit + 1,
        descending=listing.descending,
        equal={**listing.equal, **indexed},
        matching={listing.column(name).name: value for name, value in matching.items()},
        where=where,
        after=after,
    )


def shown_page(listing: ListOf, page: Page, found: Found) -> JsonObject:
    """`items` and the cursor of the next page, None on the last one. A page that has one may be short, or empty."""
    items, show = list(found.rows), listing.view.of
    next_cursor = None if found.scanned_to is None else _encoded(found.scanned_to)
    if len(items) == page.limit:
        items.pop()
        next_cursor = _encoded(page.place(items[-1]))
    return {"items": [show(row) for row in items], "next_cursor": next_cursor}


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
        return _number(text, pointer)
    return identifier(text, pointer)


def _number(text: str, pointer: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise invalid_field(pointer, "invalid_number", "must be a whole number")
    return int(text)


def _encoded(place: tuple[Any, ...]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(place)).rstrip(b"=").decode()


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
