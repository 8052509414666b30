"""API keys: which status may follow which."""

from __future__ import annotations

import hashlib

import pytest

from handlers.access import DOMAIN
from schemas.access import (
    ApiKeyCreated,
    ApiKeyDeleted,
    ApiKeyStatusChanged,
    CreateApiKey,
    DeleteApiKey,
    KeyStatus,
    SetApiKeyStatus,
)
from schemas.messages import Event
from tests.gateway.spec import AGGREGATE, Spec

access = Spec(DOMAIN)
DIGEST = hashlib.sha256(b"ap_secret").hexdigest()
CREATED = ApiKeyCreated(name="ci", scopes=("*",), secret_sha256=DIGEST)
CREATE = CreateApiKey(api_key_id=AGGREGATE, name="ci", scopes=("*",), secret_sha256=DIGEST)
DELETE = DeleteApiKey(api_key_id=AGGREGATE)


def changed(status: KeyStatus) -> ApiKeyStatusChanged:
    return ApiKeyStatusChanged(status=status)


def to(status: KeyStatus) -> SetApiKeyStatus:
    return SetApiKeyStatus(api_key_id=AGGREGATE, status=status)


def test_a_key_is_shown_without_its_hash() -> None:
    shown = access.given().when(CREATE).then(CREATED)
    assert shown["status"] == "active"
    assert DIGEST not in str(shown)


@pytest.mark.parametrize("history", [[], [changed("revoked")], [ApiKeyDeleted()]])
def test_a_key_is_made_once_whatever_became_of_it(history: list[Event]) -> None:
    access.given(CREATED, *history).when(CREATE).rejected("api_key_exists")


def test_another_tenants_try_for_the_same_key_loses_too() -> None:
    access.given(CREATED).when(CREATE, tenant_id="t2").rejected("id_taken")


def test_a_disabled_key_can_be_made_active_again() -> None:
    access.given(CREATED).when(to("disabled")).then(changed("disabled"))
    access.given(CREATED, changed("disabled")).when(to("active")).then(changed("active"))


@pytest.mark.parametrize("status", ["active", "disabled"])
def test_a_revoked_key_stays_revoked(status: KeyStatus) -> None:
    access.given(CREATED, changed("revoked")).when(to(status)).rejected("api_key_revoked")


@pytest.mark.parametrize("status", ["active", "disabled", "revoked"])
def test_the_same_status_again_is_a_retry(status: KeyStatus) -> None:
    history = [] if status == "active" else [changed(status)]
    shown = access.given(CREATED, *history).when(to(status)).then()
    assert shown["status"] == status


def test_a_deleted_key_is_gone_and_deleting_twice_is_once() -> None:
    access.given(CREATED).when(DELETE).then(ApiKeyDeleted())
    access.given(CREATED, ApiKeyDeleted()).when(DELETE).then()
    access.given(CREATED, ApiKeyDeleted()).when(to("active")).rejected("not_found", 404)


def test_an_unknown_key_and_another_tenants_are_refused_alike() -> None:
    for command in (to("revoked"), DELETE):
        unknown = access.given().when(command).rejected("not_found", 404)
        foreign = access.given(CREATED).when(command, tenant_id="t2").rejected("not_found", 404)
        assert unknown.problem() == foreign.problem()
