"""API keys as the API shows them: never their secret."""

from __future__ import annotations

from typing import Annotated

from typing_extensions import TypedDict

from infra.db import instant
from projections.access import API_KEYS, ApiKey
from projections.views import Moment, OneOf, Tenant, Uuid, View
from schemas.access import SCOPES_EXAMPLE, KeyStatus
from schemas.examples import Example


class ApiKeyView(TypedDict):
    id: Uuid
    tenant_id: Tenant
    name: Annotated[str, Example("local-dev")]
    scopes: Annotated[list[str], Example(SCOPES_EXAMPLE)]
    user_id: str | None
    status: Annotated[str, OneOf(KeyStatus), Example("active")]
    created_at: Moment
    updated_at: Moment


def api_key_view(key: ApiKey) -> ApiKeyView:
    return {
        "id": key.id,
        "tenant_id": key.tenant_id,
        "name": key.name,
        "scopes": key.scopes,
        "user_id": key.user_id,
        "status": key.status,
        "created_at": instant(key.created_at),
        "updated_at": instant(key.updated_at),
    }


API_KEY = View("API key", API_KEYS, ApiKeyView, api_key_view)
