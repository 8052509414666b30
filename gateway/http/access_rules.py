"""Authentication and authorisation of a request, in front of every route."""

from __future__ import annotations

import hmac
from dataclasses import replace

from starlette.requests import Request

from gateway.http.call import Call
from gateway.http.identity import (
    ACT_AS,
    PLATFORM,
    PUBLIC_TENANT,
    Caller,
    acting_user,
    allows,
    named_tenant,
    presented_credential,
    unauthenticated,
)
from gateway.http.problems import Problem
from gateway.http.state import Gateway
from projections.access import ApiKey

KEYS_PATH = "/gateway/api-keys"


async def authenticated(
    gateway: Gateway, request: Request, call: Call, method: str, path: str, permission: str
) -> Caller:
    """Who calls, allowed to. Raises Problem 401, 403 or 429."""
    if not gateway.settings.auth_required:
        caller = named_tenant(request, Caller(tenant_id=None, user_id=acting_user(request), trusted=True))
        call.tenant_id, call.user_id = caller.tenant_id or PUBLIC_TENANT, caller.user_id
        return caller
    makes_key = method == "POST" and path == KEYS_PATH
    credential = presented_credential(request)
    if makes_key and await _may_bootstrap(gateway, credential):
        return named_tenant(request, Caller(tenant_id=None, bootstrap=True))
    key = await gateway.keys.check(credential)
    call.tenant_id, call.api_key_id = key.tenant_id, key.id
    gateway.keys.count(key.id)
    caller = _caller(request, key)
    call.user_id = caller.user_id
    if not allows(caller.scopes, permission):
        raise Problem(403, "forbidden", f"the API key lacks the scope {permission}")
    if makes_key and PLATFORM in caller.scopes:
        caller = replace(caller, tenant_id=None)  # It may name any tenant.
    return named_tenant(request, caller)


def _caller(request: Request, key: ApiKey) -> Caller:
    user_id = key.user_id
    named = acting_user(request)
    if named is not None and named != user_id:
        if ACT_AS not in key.scopes:
            raise Problem(403, "forbidden", f"x-user-id needs an API key with the scope {ACT_AS}")
        user_id = named
    return Caller(
        tenant_id=key.tenant_id,
        home=key.tenant_id,
        user_id=user_id,
        api_key_id=key.id,
        scopes=tuple(key.scopes),
    )


async def _may_bootstrap(gateway: Gateway, credential: str) -> bool:
    """Whether this request may make the first key: it bears the bootstrap token, or anybody may, and none exists.

    Raises Problem 401 for the token once there is a key.
    """
    token = gateway.settings.bootstrap_token
    secret = token.get_secret_value() if token else ""
    bears_token = bool(secret) and hmac.compare_digest(credential.encode(), secret.encode())
    if not bears_token and (credential or not gateway.settings.bootstrap_open):
        return False
    if await gateway.reads.any_api_key():
        raise unauthenticated()
    return True


async def credential_checked(gateway: Gateway, request: Request) -> None:
    """For what every caller may see: with authentication on, any valid key. Raises Problem 401 or 429."""
    if gateway.settings.auth_required:
        key = await gateway.keys.check(presented_credential(request))
        gateway.keys.count(key.id)
