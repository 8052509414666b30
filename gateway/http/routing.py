"""Kinds of routes: what one line of a route table means, from credential to response."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import pydantic
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.access_rules import authenticated
from gateway.http.call import Call, call_of, parse_json, read_body
from gateway.http.commands import (
    Sending,
    accepted,
    command_id_of,
    fingerprint,
    json_response,
    preference,
    result_of,
)
from gateway.http.identity import PUBLIC_TENANT, Caller, body_tenant
from gateway.http.lists import ListOf, page_of, shown_page
from gateway.http.ports import DatabaseUnavailable
from gateway.http.problems import Problem, not_found, problem_of, unavailable
from gateway.http.state import Gateway, new_id
from infra.db import TableSpec
from outbox.tombstones import TOMBSTONES, Tombstone, expired
from schemas.messages import UUID_PATTERN, Command, ForeignId, JsonObject
from schemas.registry import problems as validation_problems

PUBLIC = "public"
PUBLIC_PATHS = frozenset({"/ready", "/gateway/services/health"})
_PERMISSION = re.compile(r"^gateway:[a-z][a-z-]*:(read|write)$")


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's path names: `id`, and `parent`, the aggregate it belongs to (itself if none is asked)."""

    id: str = ""
    parent: str = ""


class Body(BaseModel):
    """A request body: field names as the API has them. `tenant_id` is checked against the caller and dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    tenant_id: ForeignId | None = None

    names: ClassVar[Mapping[str, str]] = {}
    """Fields that name an object by our id, and its table: whose tenant holds if no tenant is named."""
    any_tenant: ClassVar[bool] = False
    """With no tenant named it is a call for all of them (only possible with authentication off)."""


class CommandBody(Body):
    """A body that is a command in the API's words."""

    def command(self, target: Target) -> Command:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Object:
    """What the id in a path names. `kind`: its row must be of it. `with_parent`: its aggregate is needed too."""

    spec: TableSpec
    what: str
    kind: str | None = None
    with_parent: bool = False

    def matches(self, row: Any) -> bool:
        return self.kind is None or row.kind == self.kind


B = TypeVar("B", bound=Body)


@dataclass(frozen=True, slots=True)
class Asked(Generic[B]):
    """A request that passed every check up to its command."""

    request: Request
    call: Call
    caller: Caller
    body: B
    raw: bytes
    target: Target

    def sending(self, command: Command, command_id: str) -> Sending:
        return Sending(command, command_id, self.caller.tenant, self.caller.actor, fingerprint(self.call, self.raw))


@dataclass(frozen=True, slots=True)
class Write:
    """One command: `Post("/human/tasks/{id}/claim", ClaimTask, "gateway:human:write", "HumanTask")`."""

    method: str
    path: str
    body: type[CommandBody]
    permission: str
    shows: str
    status: int = 200
    object: Object | None = None
    after: Callable[[Gateway, Target], None] | None = None
    """Told of a success, before the response."""

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        asked = await received(gateway, request, call, caller, self.body, self.object)
        command_id = command_id_of(request, asked.caller.tenant, new_id())
        it = asked.sending(asked.body.command(asked.target), command_id)
        wait = preference(request, gateway.settings.outcome_wait_seconds)
        result = await result_of(gateway, call, it, wait.seconds)
        if result is None:
            return accepted(command_id, wait.applied)
        if self.after is not None:
            self.after(gateway, asked.target)
        return json_response(result, self.status, wait.headers)


@dataclass(frozen=True, slots=True)
class Action(Generic[B]):
    """A write that is more than one command: `run` makes the response."""

    method: str
    path: str
    body: type[B]
    permission: str
    shows: str
    run: Callable[[Gateway, Asked[B]], Awaitable[Response]]
    status: int = 200
    object: Object | None = None

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        return await self.run(gateway, await received(gateway, request, call, caller, self.body, self.object))


@dataclass(frozen=True, slots=True)
class Read:
    """One row by its id."""

    path: str
    object: Object
    permission: str
    shows: str
    show: Callable[[Any], JsonObject]
    method: str = "GET"
    status: int = 200

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        id = path_id(request, self.object.what)
        caller = await within_object(gateway, call, caller, self.object, id)
        row = await gateway.reads.one(caller.tenant, self.object.spec, id)
        if row is None or not self.object.matches(row):
            raise await absent(gateway, caller.tenant, self.object, id)
        return json_response(self.show(row))


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows by page. `prepare` is awaited before they are read."""

    path: str
    rows: ListOf
    permission: str
    shows: str
    prepare: Callable[[Gateway], Awaitable[None]] | None = None
    method: str = "GET"
    status: int = 200

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        page = page_of(self.rows, request)
        if self.prepare is not None:
            await self.prepare(gateway)
        rows = await gateway.reads.page(caller.tenant, page)
        return json_response(shown_page(self.rows, page, rows))


@dataclass(frozen=True, slots=True)
class Ask:
    """A read of its own kind."""

    path: str
    run: Callable[[Gateway, Request, Call, Caller], Awaitable[Response]]
    permission: str
    shows: str
    method: str = "GET"
    status: int = 200

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        return await self.run(gateway, request, call, caller)


Post = partial(Write, "POST")
Patch = partial(Write, "PATCH")
Delete = partial(Write, "DELETE")
Route = Write | Action[Any] | Read | Listing | Ask


async def received(
    gateway: Gateway, request: Request, call: Call, caller: Caller, body: type[B], object: Object | None
) -> Asked[B]:
    """Read and check the body, and find what the path names. A foreign tenant is refused before validation."""
    raw = await read_body(request, gateway.settings.body_bytes_max)
    value = parse_json(raw)
    caller = body_tenant(value, caller)
    call.tenant_id = caller.tenant_id or call.tenant_id
    try:
        valid = body.model_validate(value)
    except pydantic.ValidationError as error:
        errors = validation_problems(error)
        first = errors[0]
        detail = f"{first['pointer'] or '/'}: {first['detail']}"
        raise Problem(422, "invalid_request", detail, errors=errors) from None
    target = Target()
    if object is not None:
        id = path_id(request, object.what)
        caller = await within_object(gateway, call, caller, object, id)
        target = await _target(gateway, caller, object, id)
    elif caller.tenant_id is None and not body.any_tenant:
        caller = await _within_named(gateway, call, caller, valid)
    return Asked(request, call, caller, valid, raw, target)


def path_id(request: Request, what: str) -> str:
    """The id in the path, lower-case. What is not a uuid names nothing: Problem 404."""
    (text,) = request.path_params.values()
    id = str(text).lower()
    if not UUID_PATTERN.match(id):
        raise not_found(what)
    return id


async def within_object(gateway: Gateway, call: Call, caller: Caller, object: Object, id: str) -> Caller:
    """The caller within the tenant of the object named, if none was named and authentication is off."""
    if caller.tenant_id is not None:
        return caller
    reads = gateway.reads
    tenant_id = await reads.tenant_of(object.spec.name, id) or await reads.tenant_of(TOMBSTONES.name, id)
    if tenant_id is None:
        raise not_found(object.what)
    call.tenant_id = tenant_id
    return caller.within(tenant_id)


async def absent(gateway: Gateway, tenant_id: str, object: Object, id: str) -> Problem:
    """Why this tenant has no such object: retention has removed it (410), or it never was (404)."""
    gone: Tombstone | None = await gateway.reads.one(tenant_id, TOMBSTONES, id)
    if gone is None or gone.kind != object.spec.name:
        return not_found(object.what)
    return problem_of(expired(gone).problem())


async def _target(gateway: Gateway, caller: Caller, object: Object, id: str) -> Target:
    if not object.with_parent:
        return Target(id, id)
    row = await gateway.reads.one(caller.tenant, object.spec, id)
    if row is None or not object.matches(row):
        raise not_found(object.what)
    return Target(id, getattr(row, object.spec.parent))


async def _within_named(gateway: Gateway, call: Call, caller: Caller, body: Body) -> Caller:
    for name, table in body.names.items():
        id = getattr(body, name)
        if id is not None:
            tenant_id = await gateway.reads.tenant_of(table, id)
            if tenant_id is not None:
                call.tenant_id = tenant_id
                return caller.within(tenant_id)
    call.tenant_id = caller.home
    return caller.within(caller.home)


def check_permissions(routes: Iterable[Route]) -> None:
    """Raise ValueError for a route that declares no permission, or is public without being on the list."""
    for route in routes:
        public = route.permission == PUBLIC and route.path in PUBLIC_PATHS
        if not public and not _PERMISSION.match(route.permission):
            raise ValueError(f"{route.method} {route.path} declares no permission")


def add_routes(app: FastAPI, gateway: Gateway, routes: Iterable[Route]) -> None:
    """Serve `routes`: one entry per path, since a path knows which methods it allows."""
    by_path: dict[str, dict[str, Route]] = {}
    for route in routes:
        methods = by_path.setdefault(route.path, {})
        if route.method in methods:
            raise ValueError(f"{route.method} {route.path} is declared twice")
        methods[route.method] = route
    for path, methods in by_path.items():
        app.add_route(path, _dispatch(gateway, path, methods), methods=list(methods), include_in_schema=False)


def _dispatch(gateway: Gateway, path: str, methods: Mapping[str, Route]) -> Callable[[Request], Awaitable[Response]]:
    methods = {**methods, **({"HEAD": methods["GET"]} if "GET" in methods else {})}

    async def answer(request: Request) -> Response:
        call = call_of(request)
        call.route = path
        route = methods[request.method]
        try:
            if route.permission == PUBLIC:
                caller = Caller(tenant_id=PUBLIC_TENANT)
            else:
                caller = await authenticated(gateway, request, call, route.method, path, route.permission)
            return await route(gateway, request, call, caller)
        except Problem as problem:
            return problem.response(call.request_id)
        except DatabaseUnavailable:
            return unavailable("postgres").response(call.request_id)

    return answer
