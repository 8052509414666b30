"""Routes of API keys."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Any

from pydantic import BeforeValidator
from starlette.responses import Response

from gateway.http.commands import accepted, command_id_of, json_response, preference, result_of
from gateway.http.identity import ACT_AS, PLATFORM
from gateway.http.lists import ListOf
from gateway.http.ports import Condition
from gateway.http.problems import Problem
from gateway.http.routing import Action, Asked, Body, CommandBody, Delete, Listing, Object, Patch, Route, Target
from gateway.http.state import Gateway, new_id
from projections.access import API_KEYS, ApiKey, shown_api_key
from schemas.access import CreateApiKey, DeleteApiKey, KeyStatus, Scope, SetApiKeyStatus
from schemas.messages import ForeignId, Name, derive, natural_id

BOOTSTRAP_KEY_ID = natural_id("", "api_key", "bootstrap")
"""The id of the key that a bootstrap makes: of all tries together at most one can succeed, now or ever."""
BOOTSTRAP_SCOPES = ("*", ACT_AS, PLATFORM)
DEFAULT_SCOPES = ("*",)


def _split(scopes: Any) -> Any:
    return scopes.replace(",", " ").split() if isinstance(scopes, str) else scopes


class CreateKey(Body):
    name: Name
    scopes: Annotated[tuple[Scope, ...], BeforeValidator(_split)] = ()
    user_id: ForeignId | None = None


class KeyStatusBody(CommandBody):
    status: KeyStatus

    def command(self, target: Target) -> SetApiKeyStatus:
        return SetApiKeyStatus(api_key_id=target.id, status=self.status)


class DeleteKey(CommandBody):
    def command(self, target: Target) -> DeleteApiKey:
        return DeleteApiKey(api_key_id=target.id)


async def create_key(gateway: Gateway, asked: Asked[CreateKey]) -> Response:
    """Make a key; its text is in this answer only, also if that is a 202."""
    scopes = _granted(asked)
    command_id = command_id_of(asked.request, asked.caller.tenant, new_id())
    key_id = BOOTSTRAP_KEY_ID if asked.caller.bootstrap else derive(command_id, "api_key")
    text = f"ap_{key_id}_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    command = CreateApiKey(
        api_key_id=key_id,
        name=asked.body.name,
        scopes=scopes,
        secret_sha256=digest,
        user_id=asked.body.user_id,
    )
    wait = preference(asked.request, gateway.settings.outcome_wait_seconds)
    result = await result_of(gateway, asked.call, asked.sending(command, command_id), wait.seconds)
    if result is None:
        return accepted(command_id, wait.applied, {"id": key_id, "api_key": text})
    if "idempotency-key" in asked.request.headers:
        # A repeat gets the first try's key, whose text nobody has any more.
        stored: ApiKey | None = await gateway.reads.one(asked.caller.tenant, API_KEYS, key_id)
        if stored is None or stored.secret_sha256 != digest:
            return json_response(result | {"api_key": None}, 201, wait.headers)
    return json_response(result | {"api_key": text}, 201, wait.headers)


def _granted(asked: Asked[CreateKey]) -> tuple[str, ...]:
    """The scopes of the new key: at most those of the caller. Raises Problem 403."""
    caller, wanted = asked.caller, asked.body
    if caller.bootstrap:
        return wanted.scopes or BOOTSTRAP_SCOPES
    scopes = wanted.scopes or DEFAULT_SCOPES
    for scope in scopes:
        if not caller.holds(scope):
            raise Problem(403, "scope_not_held", f"the API key cannot hand on the scope {scope!r}")
    if wanted.user_id not in (None, caller.user_id) and not caller.holds(ACT_AS):
        raise Problem(403, "scope_not_held", f"a key for another user needs the scope {ACT_AS}")
    return scopes


def _forget(gateway: Gateway, target: Target) -> None:
    gateway.keys.forget(target.id)


API_KEY = Object(API_KEYS, "API key")
KEY_LIST = ListOf(
    API_KEYS,
    shown_api_key,
    ("name", "status", "user_id"),
    where=(Condition("status <> 'deleted'", lambda key: key.status != "deleted"),),
)
READ, WRITE = "gateway:api-keys:read", "gateway:api-keys:write"
_KEYS = "/gateway/api-keys"

ROUTES: tuple[Route, ...] = (
    Action("POST", _KEYS, CreateKey, WRITE, "ApiKeyMade", create_key, 201),
    Listing(_KEYS, KEY_LIST, READ, "ApiKey"),
    Delete(_KEYS + "/{api_key_id}", DeleteKey, WRITE, "ApiKey", object=API_KEY, after=_forget),
    Patch(_KEYS + "/{api_key_id}/status", KeyStatusBody, WRITE, "ApiKey", object=API_KEY, after=_forget),
)
