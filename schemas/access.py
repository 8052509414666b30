"""Wire contract of API keys: who may call the gateway. These names are stored; renaming one is a migration."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, StringConstraints

from schemas.examples import Example
from schemas.messages import Command, Event, ForeignId, Id, Name

KeyStatus = Literal["active", "disabled", "revoked"]
SCOPES_EXAMPLE = ["gateway:agents:*", "gateway:runtime:read"]
Scope = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[a-z*_:-]+$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ApiKeyCommand(Command):
    api_key_id: Id

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.api_key_id


class CreateApiKey(ApiKeyCommand):
    """`secret_sha256` is the hash of the whole key; the key itself never travels on the bus."""

    type: Literal["access.create_api_key"] = "access.create_api_key"
    creates: ClassVar[bool] = True
    name: Name
    scopes: tuple[Scope, ...] = ()
    secret_sha256: Sha256
    user_id: ForeignId | None = None


class SetApiKeyStatus(ApiKeyCommand):
    type: Literal["access.set_api_key_status"] = "access.set_api_key_status"
    status: Annotated[KeyStatus, Example("revoked")]


class DeleteApiKey(ApiKeyCommand):
    type: Literal["access.delete_api_key"] = "access.delete_api_key"


class ApiKeyCreated(Event):
    type: Literal["access.api_key_created"] = "access.api_key_created"
    name: str
    scopes: tuple[str, ...] = Field(default=())
    secret_sha256: str
    user_id: str | None = None


class ApiKeyStatusChanged(Event):
    type: Literal["access.api_key_status_changed"] = "access.api_key_status_changed"
    status: KeyStatus


class ApiKeyDeleted(Event):
    type: Literal["access.api_key_deleted"] = "access.api_key_deleted"


AccessCommand = CreateApiKey | SetApiKeyStatus | DeleteApiKey
AccessEvent = ApiKeyCreated | ApiKeyStatusChanged | ApiKeyDeleted
COMMANDS: tuple[type[Command], ...] = get_args(AccessCommand)
EVENTS: tuple[type[Event], ...] = get_args(AccessEvent)
