"""Runs and node runs as they were: the events of one run folded up to a seq or a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.http.call import Call
from gateway.http.commands import json_response
from gateway.http.identity import Caller
from gateway.http.lists import page_of, shown_page
from gateway.http.ports import Page
from gateway.http.problems import Problem, invalid_field
from gateway.http.routing import Listing, Read, absent, path_id, within_object
from gateway.http.state import Gateway
from infra.db import instant
from projections.fold import FoldRows
from projections.runtime import RUNS
from projections.runtime_fold import evolve
from schemas.messages import JsonObject

PARAMETERS = ("at_seq", "at")
"""Query parameters of routes that know the past."""
_SEQ_DIGITS_MAX = 9


@dataclass(frozen=True, slots=True)
class Moment:
    """Behind the event with this seq, or at this time (seconds since 1970)."""

    seq: int | None = None
    at: float | None = None


@dataclass(frozen=True, slots=True)
class ReadThen(Read):
    """One row of a run by its id; with `at_seq` or `at` as it was then. Leases are no events, so none is shown then."""

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        moment = moment_of(request)
        if moment is None:
            return await Read.__call__(self, gateway, request, call, caller)
        id = path_id(request, self.object.what)
        caller = await within_object(gateway, call, caller, self.object, id)
        then = await _then(gateway, caller.tenant, id, moment)
        if then is None:
            raise await absent(gateway, caller.tenant, self.object, id)
        return json_response(self.show(then.get(self.object.spec.row, id)))


@dataclass(frozen=True, slots=True)
class ListThen(Listing):
    """Rows by page; with `run_id` and `at_seq` or `at` those of that run as they were then."""

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        moment = moment_of(request)
        if moment is None:
            return await Listing.__call__(self, gateway, request, call, caller)
        page = page_of(self.rows, request)
        run_id = page.equal.get("run_id")
        if run_id is None:
            raise invalid_field("/query/run_id", "missing", "must name the run whose past is asked for")
        then = await _then(gateway, caller.tenant, run_id, moment)
        rows = [] if then is None else [row for (kind, _), row in then.rows.items() if kind is page.spec.row]
        return json_response(shown_page(self.rows, page, of_page(rows, page)))


def moment_of(request: Request) -> Moment | None:
    """The moment asked for. Raises Problem: 400 if two are, 422 for one that is none."""
    given = [(name, value) for name, value in request.query_params.multi_items() if name in PARAMETERS]
    if not given:
        return None
    if len(given) > 1:
        raise Problem(400, "conflicting_parameters", "give one at_seq or one at, not several")
    ((name, text),) = given
    return Moment(seq=_seq(text)) if name == "at_seq" else Moment(at=_at(text))


def of_page(rows: Sequence[Any], page: Page) -> list[Any]:
    """What the query of a page would give of these rows."""

    def place(row: Any) -> tuple[Any, ...]:
        return tuple(getattr(row, name) for name in page.order)

    found = [
        row
        for row in rows
        if all(getattr(row, name) == value for name, value in page.equal.items())
        and all(condition.holds(row) for condition in page.where)
        and (page.after is None or (place(row) < page.after if page.descending else place(row) > page.after))
    ]
    return sorted(found, key=place, reverse=page.descending)[: page.limit]


def openapi_parameters() -> list[JsonObject]:
    described = {
        "at_seq": ({"type": "integer", "minimum": 1}, "As it was behind the event with this seq"),
        "at": ({"type": "string", "format": "date-time"}, "As it was at this time; not together with at_seq"),
    }
    return [
        {"name": name, "in": "query", "schema": schema, "description": text}
        for name, (schema, text) in described.items()
    ]


async def _then(gateway: Gateway, tenant_id: str, run_id: str, moment: Moment) -> FoldRows | None:
    """The rows of a run as they were; None if this tenant has no such run.

    Raises Problem 404 if the run had not come so far, or did not exist yet.
    """
    if await gateway.reads.one(tenant_id, RUNS, run_id) is None:
        return None
    rows, last, began = FoldRows(), 0, 0.0
    async for recorded in gateway.reads.history(tenant_id, run_id, moment.seq):
        began = began or recorded.at
        if moment.at is not None and recorded.at > moment.at:
            break
        rows.apply(evolve, recorded)
        last = recorded.seq
    if moment.seq is not None and last < moment.seq:
        detail = f"the run has come to seq {last}"
        raise Problem(404, "seq_not_reached", detail, extra={"last_seq": last})
    if not last:
        raise Problem(404, "not_yet_created", f"the run was created at {instant(began)}")
    return rows


def _seq(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _SEQ_DIGITS_MAX or not int(text):
        raise invalid_field("/query/at_seq", "invalid_number", "must be a whole number from 1")
    return int(text)


def _at(text: str) -> float:
    try:
        found = datetime.fromisoformat(text.replace(" ", "+"))  # A plus that was not encoded comes as a space.
    except ValueError:
        raise invalid_field("/query/at", "invalid_time", "must be a time such as 2026-01-31T12:00:00Z") from None
    if found.tzinfo is None:
        raise invalid_field("/query/at", "invalid_time", "must bear its time zone, such as 2026-01-31T12:00:00Z")
    return found.timestamp()
