"""A workflow is made, renamed, gets a version, which is published."""

from __future__ import annotations

from handlers.catalog import version_id
from schemas.catalog import ChangeDefinition, CreateDefinition, CreateVersion, PublishVersion, definition_id
from schemas.messages import Command
from tests.domains.examples import Step
from tests.domains.platform import TENANT, message_id

WORKFLOW = definition_id(TENANT, "workflow", "w")
SPEC = {"nodes": [{"id": "start", "type": "start", "config": {}}], "edges": []}
GIVEN: tuple[Command, ...] = ()
STEPS: tuple[Step, ...] = (
    CreateDefinition(kind="workflow", code="w", name="W"),
    ChangeDefinition(definition_id=WORKFLOW, kind="workflow", name="other"),
    CreateVersion(definition_id=WORKFLOW, kind="workflow", spec=SPEC),
    PublishVersion(definition_id=WORKFLOW, version_id=version_id(message_id(2))),
)
