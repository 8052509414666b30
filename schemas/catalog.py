"""Wire contract of definitions and their versions. These names are stored; renaming one is a migration."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from schemas.examples import Example
from schemas.messages import Code, Command, Event, ForeignId, Id, JsonObject, Name, Text, natural_id
from schemas.problems import SpecProblem

Kind = Literal["app", "workflow"]
DefinitionStatus = Literal["active", "archived"]
VersionStatus = Literal["draft", "published"]
SPEC: JsonObject = {
    "nodes": [
        {"id": "start", "type": "start", "config": {}},
        {"id": "greet", "type": "answer", "config": {"template": "Hello {{state.name}}"}},
    ],
    "edges": [{"source": "start", "target": "greet"}],
}
"""A workflow, as an example."""


def definition_id(tenant_id: str, kind: Kind, code: str, app_id: str | None = None) -> str:
    """A definition's id: its kind and code in its tenant; a workflow's key includes its app."""
    return natural_id(tenant_id, kind, code) if app_id is None else natural_id(tenant_id, kind, app_id, code)


class CreateDefinition(Command):
    type: Literal["catalog.create_definition"] = "catalog.create_definition"
    creates: ClassVar[bool] = True
    public: ClassVar[bool] = True
    kind: Kind
    code: Code
    name: Name
    description: Text = ""
    app_id: ForeignId | None = None

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return definition_id(tenant_id, self.kind, self.code, self.app_id)


class ChangeDefinition(Command):
    type: Literal["catalog.change_definition"] = "catalog.change_definition"
    public: ClassVar[bool] = True
    definition_id: Id
    kind: Kind
    name: Annotated[Name | None, Example("Greet")] = None
    description: Annotated[Text | None, Example("Says hello")] = None
    status: DefinitionStatus | None = None

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.definition_id


class CreateVersion(Command):
    """A new version of a definition; `spec` is checked against its kind (a workflow's is its DSL)."""

    type: Literal["catalog.create_version"] = "catalog.create_version"
    public: ClassVar[bool] = True
    definition_id: Id
    kind: Kind
    spec: Annotated[JsonObject, Example(SPEC)]
    status: Annotated[VersionStatus, Example("published")] = "draft"
    description: Text = ""

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.definition_id


class PublishVersion(Command):
    type: Literal["catalog.publish_version"] = "catalog.publish_version"
    public: ClassVar[bool] = True
    definition_id: Id
    version_id: Id

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.definition_id


class TakeCheck(Command):
    """What the check of a version found; `code`: why it found nothing."""

    type: Literal["catalog.take_check"] = "catalog.take_check"
    compare_and_set: ClassVar[bool] = True
    definition_id: Id
    version_id: Id
    check_id: Id
    problems: list[SpecProblem] = Field(default_factory=list)
    code: str = ""
    detail: str = ""

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.definition_id


class DefinitionCreated(Event):
    type: Literal["catalog.definition_created"] = "catalog.definition_created"
    kind: Kind
    code: str
    name: str
    description: str = ""
    app_id: str | None = None


class DefinitionChanged(Event):
    type: Literal["catalog.definition_changed"] = "catalog.definition_changed"
    name: str | None = None
    description: str | None = None
    status: str | None = None


class VersionCreated(Event):
    type: Literal["catalog.version_created"] = "catalog.version_created"
    version_id: str
    number: int
    kind: Kind
    spec: JsonObject
    description: str = ""


class CheckStarted(Event):
    """A version is being checked on behalf of a command; `publish`: it is to be published if it has no errors.

    `expires_at`: when the command is told that it failed (seconds since 1970). Nothing is published from then on.
    """

    type: Literal["catalog.check_started"] = "catalog.check_started"
    version_id: str
    check_id: str
    command_id: str
    publish: bool = False
    expires_at: float


class VersionChecked(Event):
    """What is wrong with a version, as the rules are now."""

    type: Literal["catalog.version_checked"] = "catalog.version_checked"
    version_id: str
    check_id: str
    problems: list[SpecProblem] = Field(default_factory=list)


class CheckFailed(Event):
    """A check came to nothing."""

    type: Literal["catalog.check_failed"] = "catalog.check_failed"
    version_id: str
    check_id: str
    code: str
    detail: str = ""


class VersionPublished(Event):
    type: Literal["catalog.version_published"] = "catalog.version_published"
    version_id: str


CatalogCommand = CreateDefinition | ChangeDefinition | CreateVersion | PublishVersion | TakeCheck
CatalogEvent = (
    DefinitionCreated
    | DefinitionChanged
    | VersionCreated
    | CheckStarted
    | VersionChecked
    | CheckFailed
    | VersionPublished
)
COMMANDS: tuple[type[Command], ...] = get_args(CatalogCommand)
EVENTS: tuple[type[Event], ...] = get_args(CatalogEvent)
