"""From a request to what it asks for: its body checked, the object its path names found, its tenant settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.requests import Request

from gateway.http.call import Call, parse_json, read_body
from gateway.http.commands import OutgoingCommand, fingerprint
from gateway.http.identity import Caller, body_tenant
from gateway.http.problems import Problem, not_found, problem_of
from gateway.http.request_body import CommandBody, ModelBody
from gateway.http.state import Gateway
from outbox.tombstones import TOMBSTONES, Tombstone, expired
from projections.views import View
from schemas.messages import UUID_PATTERN, Command

B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class ValidatedRequest(Generic[B]):
    """A request that passed every check up to its command. `body`: the command itself, or the body's own model."""

    request: Request
    call: Call
    caller: Caller
    body: B
    raw: bytes

    def outgoing(self, command: Command, command_id: str) -> OutgoingCommand:
        sent = fingerprint(self.call, self.raw)
        return OutgoingCommand(command, command_id, self.caller.tenant, self.caller.actor, sent)


async def validated(
    gateway: Gateway,
    request: Request,
    call: Call,
    caller: Caller,
    takes: CommandBody[Any] | ModelBody[Any],
    named: View[Any] | None,
) -> ValidatedRequest[Any]:
    """Read and check a request. A foreign tenant is refused before anything is looked up, or its body validated.

    `named`: what the last id of the path is one of.
    """
    raw = await read_body(request, gateway.settings.body_bytes_max)
    value = parse_json(raw)
    caller = body_tenant(value, caller)
    call.tenant_id = caller.tenant_id or call.tenant_id
    ids: Mapping[str, str] = {}
    parent_id = None
    if named is not None:
        ids = path_ids(request, named.what)
        id = last(ids)
        caller = await within_object(gateway, call, caller, named, id)
        if takes.parent:
            parent_id = getattr(await existing(gateway, caller, named, id), takes.parent)
    body = takes.read(value, ids, parent_id)
    if caller.tenant_id is None and not takes.any_tenant:
        caller = await _within_named(gateway, call, caller, takes, body)
    return ValidatedRequest(request, call, caller, body, raw)


def path_ids(request: Request, what: str) -> dict[str, str]:
    """The ids in the path by name, lower-case. What is not a uuid names nothing: Problem 404."""
    ids = {name: str(text).lower() for name, text in request.path_params.items()}
    if not all(UUID_PATTERN.match(id) for id in ids.values()):
        raise not_found(what)
    return ids


def path_id(request: Request, what: str) -> str:
    """The last id in the path. Raises Problem 404."""
    return last(path_ids(request, what))


def last(ids: Mapping[str, str]) -> str:
    return list(ids.values())[-1]


async def within_object(gateway: Gateway, call: Call, caller: Caller, named: View[Any], id: str) -> Caller:
    """The caller within the tenant of the object named, if none was named and authentication is off."""
    if caller.tenant_id is not None:
        return caller
    reads = gateway.reads
    tenant_id = await reads.tenant_of(named.spec.name, id) or await reads.tenant_of(TOMBSTONES.name, id)
    if tenant_id is None:
        raise not_found(named.what)
    call.tenant_id = tenant_id
    return caller.within(tenant_id)


async def existing(gateway: Gateway, caller: Caller, named: View[Any], id: str) -> Any:
    """The row that an id names. Raises Problem 404, or 410."""
    row = await gateway.reads.one(caller.tenant, named.spec, id)
    if row is None or not named.matches(row):
        raise await absent(gateway, caller.tenant, named, id)
    return row


async def absent(gateway: Gateway, tenant_id: str, named: View[Any], id: str) -> Problem:
    """Why this tenant has no such object: retention has removed it (410), or it never was (404)."""
    gone: Tombstone | None = await gateway.reads.one(tenant_id, TOMBSTONES, id)
    if gone is None or gone.kind != named.spec.name:
        return not_found(named.what)
    return problem_of(expired(gone).problem())


async def _within_named(
    gateway: Gateway, call: Call, caller: Caller, takes: CommandBody[Any] | ModelBody[Any], body: Any
) -> Caller:
    """The caller within the tenant of the first object that the body names, else within its home."""
    tenant_id = caller.home
    for owner, id in takes.owner(body):
        found = await gateway.reads.tenant_of(owner.spec.name, id)
        if found is not None:
            tenant_id = found
            break
    call.tenant_id = tenant_id
    return caller.within(tenant_id)
