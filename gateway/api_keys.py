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
from gateway.http.request_body import Body
from gateway.http.routing import Action, Delete, Listing, Patch, Route
from gateway.http.state import Gateway, new_id
from gateway.http.validated import ValidatedRequest
from projections.access import API_KEYS, ApiKey
from projections.access_views import API_KEY, ApiKeyView
from schemas.access import SCOPES_EXAMPLE, CreateApiKey, DeleteApiKey, Scope, SetApiKeyStatus
from schemas.examples import Example
from schemas.messages import ForeignId, Name, derive, natural_id

BOOTSTRAP_KEY_ID = natural_id("", "api_key", "bootstrap")
"""The id of the key that a bootstrap makes: of all tries together at most one can succeed, now or ever."""
BOOTSTRAP_SCOPES = ("*", ACT_AS, PLATFORM)
DEFAULT_SCOPES = ("*",)


def _split(scopes: Any) -> Any:
    return scopes.replace(",", " ").split() if isinstance(scopes, str) else scopes


class NewApiKey(Body):
    """A key as it is asked for; its id and its secret are made here."""

    name: Annotated[Name, Example("local-dev")]
    scopes: Annotated[
        tuple[Scope, ...],
        BeforeValidator(_split, json_schema_input_type=str | tuple[Scope, ...]),
        Example(SCOPES_EXAMPLE),
    ] = ()
    user_id: ForeignId | None = None


class CreatedApiKey(ApiKeyView):
    """`api_key` is the key's text, which nobody is shown again; null in a repeat of the request."""

    api_key: Annotated[str | None, Example("ap_6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e_shown-once")]


async def create_api_key(gateway: Gateway, valid: ValidatedRequest[NewApiKey]) -> Response:
    """Make a key; its text is in this answer only, also if that is a 202."""
    scopes = _granted(valid)
    command_id = command_id_of(valid.request, valid.caller.tenant, new_id())
    key_id = BOOTSTRAP_KEY_ID if valid.caller.bootstrap else derive(command_id, "api_key")
    text = f"ap_{key_id}_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    command = CreateApiKey(
        api_key_id=key_id,
        name=valid.body.name,
        scopes=scopes,
        secret_sha256=digest,
        user_id=valid.body.user_id,
    )
    wait = preference(valid.request, gateway.settings.outcome_wait_seconds)
    result = await result_of(gateway, valid.call, valid.outgoing(command, command_id), wait.seconds)
    if result is None:
        return accepted(command_id, wait.applied, {"id": key_id, "api_key": text})
    if "idempotency-key" in valid.request.headers:
        # A repeat gets the first try's key, whose text nobody has any more.
        stored: ApiKey | None = await gateway.reads.one(valid.caller.tenant, API_KEYS, key_id)
        if stored is None or stored.secret_sha256 != digest:
            return json_response(result | {"api_key": None}, 201, wait.headers)
    return json_response(result | {"api_key": text}, 201, wait.headers)


def _granted(valid: ValidatedRequest[NewApiKey]) -> tuple[str, ...]:
    """The scopes of the new key: at most those of the caller. Raises Problem 403."""
    caller, wanted = valid.caller, valid.body
    if caller.bootstrap:
        return wanted.scopes or BOOTSTRAP_SCOPES
    scopes = wanted.scopes or DEFAULT_SCOPES
    for scope in scopes:
        if not caller.holds(scope):
            raise Problem(403, "scope_not_held", f"the API key cannot hand on the scope {scope!r}")
    if wanted.user_id not in (None, caller.user_id) and not caller.holds(ACT_AS):
        raise Problem(403, "scope_not_held", f"a key for another user needs the scope {ACT_AS}")
    return scopes


def _forget(gateway: Gateway, command: SetApiKeyStatus | DeleteApiKey) -> None:
    gateway.keys.forget(command.api_key_id)


KEY_LIST = ListOf(
    API_KEY,
    (),
    ("name", "status", "user_id"),
    where=(Condition("status <> 'deleted'", lambda key: key.status != "deleted"),),
)
READ, WRITE = "gateway:api-keys:read", "gateway:api-keys:write"
_KEYS = "/gateway/api-keys"

ROUTES: tuple[Route, ...] = (
    Action("POST", _KEYS, NewApiKey, WRITE, CreatedApiKey, create_api_key, 201),
    Listing(_KEYS, KEY_LIST, READ),
    Delete(_KEYS + "/{api_key_id}", DeleteApiKey, WRITE, API_KEY, after=_forget),
    Patch(_KEYS + "/{api_key_id}/status", SetApiKeyStatus, WRITE, API_KEY, after=_forget),
)
