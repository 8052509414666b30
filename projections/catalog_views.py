"""Definitions and their versions as the API shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from typing_extensions import TypedDict

from infra.db import instant
from projections.catalog import DEFINITIONS, VERSIONS, Definition, Version
from projections.views import Moment, OneOf, Tenant, Uuid, View
from schemas.catalog import SPEC, DefinitionStatus, VersionStatus
from schemas.examples import Example
from schemas.messages import JsonObject
from schemas.problems import SpecProblem


class AppView(TypedDict):
    id: Uuid
    tenant_id: Tenant
    code: Annotated[str, Example("greet")]
    name: Annotated[str, Example("Greet")]
    description: Annotated[str, Example("")]
    status: Annotated[str, OneOf(DefinitionStatus), Example("active")]
    latest_published_version_id: Annotated[Uuid | None, Example("1b9d6bcd-bbfd-5b2d-9b5d-ab8dfbbd4bed")]
    created_at: Moment
    updated_at: Moment


def app_view(head: Definition) -> AppView:
    return {
        "id": head.id,
        "tenant_id": head.tenant_id,
        "code": head.code,
        "name": head.name,
        "description": head.description,
        "status": head.status,
        "latest_published_version_id": head.latest_published,
        "created_at": instant(head.created_at),
        "updated_at": instant(head.updated_at),
    }


class WorkflowView(AppView):
    app_id: Annotated[str | None, Example("app-1")]


def workflow_view(head: Definition) -> WorkflowView:
    return {**app_view(head), "app_id": head.app_id}


class WorkflowVersionView(TypedDict):
    """A version of a workflow; `problems` are what publishing it would run into."""

    id: Uuid
    tenant_id: Tenant
    workflow_id: Uuid
    version: Annotated[int, Example(1)]
    status: Annotated[str, OneOf(VersionStatus), Example("published")]
    dsl_json: Annotated[JsonObject, Example(SPEC)]
    problems: list[SpecProblem]
    description: Annotated[str, Example("")]
    created_at: Moment
    published_at: Moment


def workflow_version_view(version: Version) -> WorkflowVersionView:
    return {
        "id": version.id,
        "tenant_id": version.tenant_id,
        "workflow_id": version.definition_id,
        "version": version.number,
        "status": version.status,
        "dsl_json": version.spec,
        "problems": version.problems,
        "description": version.description,
        "created_at": instant(version.created_at),
        "published_at": instant(version.published_at),
    }


APP = View("app", DEFINITIONS, AppView, app_view, kind="app")
WORKFLOW = View("workflow", DEFINITIONS, WorkflowView, workflow_view, kind="workflow")
WORKFLOW_VERSION = View("version", VERSIONS, WorkflowVersionView, workflow_version_view, kind="workflow")

OF_KIND: Mapping[str, View[Definition]] = {"app": APP, "workflow": WORKFLOW}
VERSIONS_OF_KIND: Mapping[str, View[Version]] = {"workflow": WORKFLOW_VERSION}
