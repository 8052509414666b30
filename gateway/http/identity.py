"""Who calls: from a credential to tenant, user and scopes; and what that lets them do."""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from gateway.http.ports import Reads
from gateway.http.problems import Problem, invalid_field
from projections.access import ApiKey
from schemas.envelope import KEY_ACTOR
from schemas.messages import UUID_PATTERN

KEY_CACHE_SECONDS = 3.0
"""How long a key found stays believed; a changed key must take effect everywhere within 5 s."""
KEY_CACHE_ENTRIES_MAX = 10_000
TENANT_CHARACTERS_MAX = 128
PUBLIC_TENANT = "public"
ACT_AS = "act_as"
PLATFORM = "platform:*"


@dataclass(frozen=True, slots=True)
class Caller:
    """`tenant_id` None: the request may name any, and has not yet; if it never does, `home` holds."""

    tenant_id: str | None
    home: str = PUBLIC_TENANT
    user_id: str | None = None
    api_key_id: str | None = None
    scopes: tuple[str, ...] = ()
    trusted: bool = False
    bootstrap: bool = False
    """`trusted`: authentication is off. `bootstrap`: may make the installation's first key, nothing else."""

    @property
    def tenant(self) -> str:
        return self.tenant_id or self.home

    @property
    def actor(self) -> str:
        return self.user_id or (f"{KEY_ACTOR}{self.api_key_id}" if self.api_key_id else "")

    def holds(self, scope: str) -> bool:
        """Whether this caller may use, and so hand on, `scope`."""
        return self.trusted or scope in self.scopes or (scope.startswith("gateway:") and allows(self.scopes, scope))

    def within(self, tenant_id: str | None) -> Caller:
        """This caller, given that the request names that tenant. Raises Problem 403 for a foreign one."""
        if tenant_id is None or tenant_id == self.tenant_id:
            return self
        if self.tenant_id is None:
            return replace(self, tenant_id=tenant_id)
        raise Problem(403, "foreign_tenant", "the request names another tenant than its credential")


def allows(scopes: Iterable[str], permission: str) -> bool:
    """Whether one of `scopes` covers `permission`: `*`, `gateway:agents:*` or exact."""
    return any(
        scope in ("*", permission) or (scope.endswith(":*") and permission.startswith(scope[:-1])) for scope in scopes
    )


class Keys:
    """API keys as Postgres has them, believed for KEY_CACHE_SECONDS, and each key's rate."""

    def __init__(self, reads: Reads, now: Callable[[], float], requests_per_second_max: int) -> None:
        self._reads = reads
        self._now = now
        self._rate = requests_per_second_max
        self._found: OrderedDict[str, tuple[ApiKey, float]] = OrderedDict()
        self._windows: dict[str, tuple[int, int]] = {}

    async def check(self, presented: str) -> ApiKey:
        """The active key that was presented. Raises Problem 401."""
        parts = presented.split("_", 2)
        if len(parts) != 3 or parts[0] != "ap" or not UUID_PATTERN.match(parts[1]):
            raise unauthenticated()
        key = await self._find(parts[1])
        digest = hashlib.sha256(presented.encode()).hexdigest()
        if not hmac.compare_digest(digest, key.secret_sha256 if key else "") or key is None:
            raise unauthenticated()
        if key.status != "active":
            raise unauthenticated()
        return key

    async def _find(self, id: str) -> ApiKey | None:
        asked = self._now()
        held = self._found.get(id)
        if held and asked - held[1] < KEY_CACHE_SECONDS:
            return held[0]
        key = await self._reads.api_key(id)
        if key is None:
            self._found.pop(id, None)
            return None
        self._found[id] = (key, asked)
        self._found.move_to_end(id)
        if len(self._found) > KEY_CACHE_ENTRIES_MAX:
            self._found.popitem(last=False)
        return key

    def forget(self, id: str) -> None:
        """The key has just been changed through this process."""
        self._found.pop(id, None)

    def count(self, key_id: str) -> None:
        """Count one request of that key. Raises Problem 429 above its rate."""
        second = int(self._now())
        at, requests = self._windows.get(key_id, (second, 0))
        if at != second:
            if len(self._windows) > KEY_CACHE_ENTRIES_MAX:
                self._windows.clear()
            requests = 0
        self._windows[key_id] = (second, requests + 1)
        if requests >= self._rate:
            raise Problem(
                429,
                "too_many_requests",
                f"this API key made more than {self._rate} requests in a second",
                headers={"retry-after": "1"},
            )


def unauthenticated() -> Problem:
    """One answer for a missing, malformed, unknown, wrong, disabled, revoked or deleted key."""
    return Problem(
        401,
        "unauthenticated",
        "a valid API key is needed: `Authorization: Bearer …` or `x-api-key`",
        headers={"www-authenticate": "Bearer"},
    )


def presented_credential(request: Request) -> str:
    """The key or token sent, or an empty string."""
    authorization = request.headers.get("authorization", "")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("x-api-key", "").strip()


def named_tenant(request: Request, caller: Caller) -> Caller:
    """`caller` within every tenant that headers and query name. Raises Problem 403 or 422."""
    for name, value in request.scope["headers"]:
        if name == b"x-tenant-id":
            caller = caller.within(identifier(_text(value), "/header/x-tenant-id"))
    if request.scope["query_string"]:
        for value in request.query_params.getlist("tenant_id"):
            caller = caller.within(identifier(value, "/query/tenant_id"))
    return caller


def body_tenant(body: Any, caller: Caller) -> Caller:
    """`caller` within the tenant that the body names; what cannot be one is left for validation to refuse."""
    if isinstance(body, dict):
        tenant_id = body.get("tenant_id")
        if isinstance(tenant_id, str) and 0 < len(tenant_id) <= TENANT_CHARACTERS_MAX:
            return caller.within(tenant_id)
    return caller


def acting_user(request: Request) -> str | None:
    value = next((value for name, value in request.scope["headers"] if name == b"x-user-id"), None)
    return None if value is None else identifier(_text(value), "/header/x-user-id")


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Problem(400, "malformed_header", "a header is not UTF-8") from None


def identifier(value: str, pointer: str) -> str:
    """An id of others', named outside a body. Raises Problem 422."""
    if not 0 < len(value) <= TENANT_CHARACTERS_MAX or "\x00" in value:
        raise invalid_field(pointer, "invalid_identifier", "must have 1 to 128 characters and no U+0000")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid_field(pointer, "lone_surrogate", "must not contain lone surrogates") from None
    return value
