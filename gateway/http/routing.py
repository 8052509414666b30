"""Kinds of routes: what one line of a route table means, from credential to response.

A write is one line: `Post("/human/tasks/{task_id}/complete", CompleteTask, "gateway:human:write", HUMAN_TASK)`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.access_rules import authenticated
from gateway.http.call import Call, call_of
from gateway.http.commands import accepted, command_id_of, json_response, preference, result_of
from gateway.http.identity import PUBLIC_TENANT, Caller
from gateway.http.lists import ListOf, page_of, shown_page
from gateway.http.ports import DatabaseUnavailable
from gateway.http.problems import Problem, unavailable
from gateway.http.request_body import Body, CommandBody, ModelBody, Words
from gateway.http.state import Gateway, new_id
from gateway.http.validated import ValidatedRequest, existing, last, path_id, path_ids, validated, within_object
from projections.views import View
from schemas.messages import Command

PUBLIC = "public"
PUBLIC_PATHS = frozenset({"/ready", "/gateway/services/health"})
_PERMISSION = re.compile(r"^gateway:[a-z][a-z-]*:(read|write)$")
_PATH_NAME = re.compile(r"\{(\w+)\}")

C = TypeVar("C", bound=Command)
B = TypeVar("B")


def path_names(path: str) -> tuple[str, ...]:
    return tuple(_PATH_NAME.findall(path))


def _parent_field(command: type[Command], named: View[Any] | None) -> str | None:
    """The command's field that the row of the object in the path can give: the aggregate of a row inside one."""
    if named is None or named.spec.parent == "id":
        return None
    return named.spec.parent if named.spec.parent in command.model_fields else None


@dataclass(frozen=True, slots=True)
class Write(Generic[C]):
    """One command: its fields less what the path's ids and `fixed` say are the body. See CommandBody.

    `view`: what is shown, and what the last id of the path names, unless `named` is something else.
    `operation`: the operation's id, where the derived one would not do.
    """

    method: str
    path: str
    command: type[C]
    permission: str
    view: View[Any]
    status: int = 200
    named: View[Any] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    words: Words = field(default_factory=dict)
    owners: Mapping[str, View[Any]] = field(default_factory=dict)
    operation: str = ""
    after: Callable[[Gateway, C], None] | None = None
    """Told of a success, before the response."""
    takes: CommandBody[C] = field(init=False)

    def __post_init__(self) -> None:
        names = path_names(self.path)
        object.__setattr__(self, "named", (self.named or self.view) if names else None)
        parent = _parent_field(self.command, self.named)
        takes = CommandBody(self.command, names, self.fixed, self.words, owners=self.owners, parent=parent)
        object.__setattr__(self, "takes", takes)

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        valid: ValidatedRequest[C] = await validated(gateway, request, call, caller, self.takes, self.named)
        command_id = command_id_of(request, valid.caller.tenant, new_id())
        wait = preference(request, gateway.settings.outcome_wait_seconds)
        result = await result_of(gateway, call, valid.outgoing(valid.body, command_id), wait.seconds)
        if result is None:
            return accepted(command_id, wait.applied)
        if self.after is not None:
            self.after(gateway, valid.body)
        return json_response(result, self.status, wait.headers)


@dataclass(frozen=True, slots=True)
class Action(Generic[B]):
    """A write that is more than one command: `run` makes the response. `shows`: a view, or a shape of its own."""

    method: str
    path: str
    body: type[B]
    permission: str
    shows: View[Any] | type[Any]
    run: Callable[[Gateway, ValidatedRequest[B]], Awaitable[Response]]
    status: int = 200
    named: View[Any] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    words: Words = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    operation: str = ""
    takes: CommandBody[Any] | ModelBody[Any] = field(init=False)

    def __post_init__(self) -> None:
        names = path_names(self.path)
        if names and self.named is None:
            object.__setattr__(self, "named", self.shows)
        object.__setattr__(self, "takes", self._takes(names))

    def _takes(self, names: tuple[str, ...]) -> CommandBody[Any] | ModelBody[Any]:
        if issubclass(self.body, Body):
            return ModelBody(self.body)
        if not issubclass(self.body, Command):
            raise TypeError(f"{self.body.__name__} is neither a command nor a body")
        parent = _parent_field(self.body, self.named)
        return CommandBody(self.body, names, self.fixed, self.words, self.defaults, parent=parent)

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        return await self.run(gateway, await validated(gateway, request, call, caller, self.takes, self.named))


@dataclass(frozen=True, slots=True)
class Read:
    """One row by its id."""

    path: str
    view: View[Any]
    permission: str
    operation: str = ""
    method: str = "GET"
    status: int = 200

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        id = path_id(request, self.view.what)
        caller = await within_object(gateway, call, caller, self.view, id)
        return json_response(self.view.of(await existing(gateway, caller, self.view, id)))


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows by page. `prepare` is awaited before they are read.

    Below an object, `/sessions/{session_id}/messages`, the path's ids are filters; `named`: what the last one is
    one of. Raises TypeError for an id by which no index finds the rows.
    """

    path: str
    rows: ListOf
    permission: str
    named: View[Any] | None = None
    prepare: Callable[[Gateway], Awaitable[None]] | None = None
    operation: str = ""
    method: str = "GET"
    status: int = 200

    def __post_init__(self) -> None:
        names = path_names(self.path)
        if wrong := [name for name in names if name not in self.rows.filters]:
            raise TypeError(f"{self.path}: {', '.join(wrong)} is no filter by an index")
        if bool(names) != (self.named is not None):
            raise TypeError(f"{self.path}: a path with an id, and only such a one, says what that names")

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        ids: Mapping[str, str] = {}
        if self.named is not None:
            ids = path_ids(request, self.named.what)
            caller = await within_object(gateway, call, caller, self.named, last(ids))
            await existing(gateway, caller, self.named, last(ids))
        page = page_of(self.rows, request, ids)
        if self.prepare is not None:
            await self.prepare(gateway)
        return json_response(shown_page(self.rows, page, await gateway.reads.page(caller.tenant, page)))


@dataclass(frozen=True, slots=True)
class Query:
    """A read of its own kind, answered in a shape of its own."""

    path: str
    run: Callable[[Gateway, Request, Call, Caller], Awaitable[Response]]
    permission: str
    shows: type[Any]
    operation: str = ""
    method: str = "GET"
    status: int = 200

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        return await self.run(gateway, request, call, caller)


Post = partial(Write, "POST")
Patch = partial(Write, "PATCH")
Delete = partial(Write, "DELETE")
Route = Write[Any] | Action[Any] | Read | Listing | Query


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
