"""Routes of apps, workflows and their versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from gateway.http.lists import ListOf
from gateway.http.routing import CommandBody, Listing, Object, Patch, Post, Read, Route, Target
from projections.catalog import DEFINITIONS, VERSIONS, shown_definition, shown_version
from schemas.catalog import ChangeDefinition, CreateDefinition, CreateVersion, Kind, PublishVersion
from schemas.messages import Code, ForeignId, Id, JsonObject, Name, Text


class CreateApp(CommandBody):
    code: Code
    name: Name
    description: Text = ""

    def command(self, target: Target) -> CreateDefinition:
        return CreateDefinition(kind="app", code=self.code, name=self.name, description=self.description)


class CreateWorkflow(CommandBody):
    app_id: ForeignId | None = None
    code: Code
    name: Name
    description: Text = ""

    def command(self, target: Target) -> CreateDefinition:
        return CreateDefinition(
            kind="workflow",
            code=self.code,
            name=self.name,
            description=self.description,
            app_id=self.app_id,
        )


class _Change(CommandBody):
    kind: ClassVar[Kind]
    name: Name | None = None
    description: Text | None = None
    status: Literal["active", "archived"] | None = None

    def command(self, target: Target) -> ChangeDefinition:
        return ChangeDefinition(
            definition_id=target.id,
            kind=self.kind,
            name=self.name,
            description=self.description,
            status=self.status,
        )


class ChangeApp(_Change):
    kind = "app"


class ChangeWorkflow(_Change):
    kind = "workflow"


class CreateWorkflowVersion(CommandBody):
    names: ClassVar[Mapping[str, str]] = {"workflow_id": "definition"}
    workflow_id: Id
    dsl_json: JsonObject
    status: Literal["draft", "published"] = "draft"
    description: Text = ""

    def command(self, target: Target) -> CreateVersion:
        return CreateVersion(
            definition_id=self.workflow_id,
            kind="workflow",
            spec=self.dsl_json,
            status=self.status,
            description=self.description,
        )


class PublishWorkflowVersion(CommandBody):
    def command(self, target: Target) -> PublishVersion:
        return PublishVersion(definition_id=target.parent, version_id=target.id)


APP = Object(DEFINITIONS, "app", kind="app")
WORKFLOW = Object(DEFINITIONS, "workflow", kind="workflow")
VERSION = Object(VERSIONS, "version", kind="workflow", with_parent=True)


def _definitions(kind: Kind, *filters: str) -> ListOf:
    equal: dict[str, Any] = {"kind": kind}
    return ListOf(DEFINITIONS, shown_definition, ("code", "name", "status", *filters), equal=equal)


VERSION_LIST = ListOf(
    VERSIONS,
    shown_version,
    ("workflow_id", "status", "version"),
    renamed={"workflow_id": "definition_id", "version": "number"},
    equal={"kind": "workflow"},
)

READ, WRITE = "gateway:workflows:read", "gateway:workflows:write"
_APPS, _FLOWS = "/gateway/workflows/apps", "/gateway/workflows"
_VERSIONS = "/gateway/workflows/versions"

ROUTES: tuple[Route, ...] = (
    Post(_APPS, CreateApp, WRITE, "App", 201),
    Listing(_APPS, _definitions("app"), READ, "App"),
    Read(_APPS + "/{app_id}", APP, READ, "App", shown_definition),
    Patch(_APPS + "/{app_id}", ChangeApp, WRITE, "App", object=APP),
    Post(_VERSIONS, CreateWorkflowVersion, WRITE, "WorkflowVersion", 201),
    Listing(_VERSIONS, VERSION_LIST, READ, "WorkflowVersion"),
    Read(_VERSIONS + "/{version_id}", VERSION, READ, "WorkflowVersion", shown_version),
    Post(_VERSIONS + "/{version_id}/publish", PublishWorkflowVersion, WRITE, "WorkflowVersion", object=VERSION),
    Post(_FLOWS, CreateWorkflow, WRITE, "Workflow", 201),
    Listing(_FLOWS, _definitions("workflow", "app_id"), READ, "Workflow"),
    # After the fixed names above: a path is taken by the first entry that matches it.
    Read(_FLOWS + "/{workflow_id}", WORKFLOW, READ, "Workflow", shown_definition),
    Patch(_FLOWS + "/{workflow_id}", ChangeWorkflow, WRITE, "Workflow", object=WORKFLOW),
)
