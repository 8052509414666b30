"""API keys: make one, switch it off and on, revoke or delete it.

That exactly one of many parallel tries makes an installation's first key needs no rule here: they all name
the same key id, so they are commands for one aggregate, and the second one finds it made. A deleted key keeps
its row, so deleting never opens that door again.
"""

from __future__ import annotations

from collections.abc import Iterator

from projections import access as known
from projections.access import ApiKey
from projections.access_views import ApiKeyView, api_key_view
from schemas.access import (
    EVENTS,
    ApiKeyCreated,
    ApiKeyDeleted,
    ApiKeyStatusChanged,
    CreateApiKey,
    DeleteApiKey,
    SetApiKeyStatus,
)
from schemas.decider import Domain, Meta, Rows
from schemas.messages import Command, Rejected


def create(command: CreateApiKey, rows: Rows, meta: Meta) -> Iterator[ApiKeyCreated]:
    if rows.get(ApiKey, meta.aggregate_id) is not None:
        raise Rejected("api_key_exists", "this key has been made already")
    yield ApiKeyCreated(
        name=command.name,
        scopes=command.scopes,
        secret_sha256=command.secret_sha256,
        user_id=command.user_id,
    )


def set_status(command: SetApiKeyStatus, rows: Rows, meta: Meta) -> Iterator[ApiKeyStatusChanged]:
    key = rows.get(ApiKey, meta.aggregate_id)
    if key is None or key.status == "deleted":
        raise Rejected("not_found", "no such API key", status=404)
    if key.status == command.status:
        return
    if key.status == "revoked":
        raise Rejected("api_key_revoked", "a revoked key stays revoked")
    yield ApiKeyStatusChanged(status=command.status)


def delete(command: DeleteApiKey, rows: Rows, meta: Meta) -> Iterator[ApiKeyDeleted]:
    key = rows.get(ApiKey, meta.aggregate_id)
    if key is None:
        raise Rejected("not_found", "no such API key", status=404)
    if key.status != "deleted":
        yield ApiKeyDeleted()


def answer(command: Command, rows: Rows, meta: Meta) -> ApiKeyView:
    """What the sender is shown: the key without its secret."""
    key = rows.get(ApiKey, meta.aggregate_id)
    if key is None:
        raise TypeError(f"{command.type} left no API key")
    return api_key_view(key)


DOMAIN = Domain(
    name="access",
    head=ApiKey,
    decide={CreateApiKey: create, SetApiKeyStatus: set_status, DeleteApiKey: delete},
    evolve=known.evolve,
    events=EVENTS,
    tables=known.TABLES,
    answer=answer,
)
