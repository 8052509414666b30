"""Routes of apps, workflows and their versions."""

from __future__ import annotations

from gateway.http.lists import ListOf
from gateway.http.routing import Listing, Patch, Post, Read, Route
from projections.catalog_views import APP, WORKFLOW, WORKFLOW_VERSION
from schemas.catalog import ChangeDefinition, CreateDefinition, CreateVersion, PublishVersion

APP_LIST = ListOf(APP, (), ("code", "name", "status"), equal={"kind": "app"})
WORKFLOW_LIST = ListOf(WORKFLOW, (), ("code", "name", "status", "app_id"), equal={"kind": "workflow"})
VERSION_LIST = ListOf(
    WORKFLOW_VERSION,
    ("workflow_id",),
    scanned=("status", "version"),
    renamed={"workflow_id": "definition_id", "version": "number"},
    equal={"kind": "workflow"},
)

READ, WRITE = "gateway:workflows:read", "gateway:workflows:write"
_APPS, _FLOWS = "/gateway/workflows/apps", "/gateway/workflows"
_VERSIONS = "/gateway/workflows/versions"
_AN_APP = {"kind": "app"}
_A_FLOW = {"kind": "workflow"}
_FLOW_ID = {"definition_id": "workflow_id"}

ROUTES: tuple[Route, ...] = (
    Post(_APPS, CreateDefinition, WRITE, APP, 201, fixed=_AN_APP | {"app_id": None}, operation="createApp"),
    Listing(_APPS, APP_LIST, READ),
    Read(_APPS + "/{app_id}", APP, READ),
    Patch(
        _APPS + "/{app_id}",
        ChangeDefinition,
        WRITE,
        APP,
        fixed=_AN_APP,
        words={"definition_id": "app_id"},
        operation="changeApp",
    ),
    Post(
        _VERSIONS,
        CreateVersion,
        WRITE,
        WORKFLOW_VERSION,
        201,
        fixed=_A_FLOW,
        words=_FLOW_ID | {"spec": "dsl_json"},
        owners={"definition_id": WORKFLOW},
    ),
    Listing(_VERSIONS, VERSION_LIST, READ),
    Read(_VERSIONS + "/{version_id}", WORKFLOW_VERSION, READ),
    Post(_VERSIONS + "/{version_id}/publish", PublishVersion, WRITE, WORKFLOW_VERSION),
    Post(_FLOWS, CreateDefinition, WRITE, WORKFLOW, 201, fixed=_A_FLOW, operation="createWorkflow"),
    Listing(_FLOWS, WORKFLOW_LIST, READ),
    # After the fixed names above: a path is taken by the first entry that matches it.
    Read(_FLOWS + "/{workflow_id}", WORKFLOW, READ),
    Patch(
        _FLOWS + "/{workflow_id}",
        ChangeDefinition,
        WRITE,
        WORKFLOW,
        fixed=_A_FLOW,
        words=_FLOW_ID,
        operation="changeWorkflow",
    ),
)
