"""A workflow is made, renamed, gets a version, which is checked, then published."""

from __future__ import annotations

from handlers.catalog import version_id
from schemas.catalog import ChangeDefinition, CreateDefinition, CreateVersion, PublishVersion, TakeCheck, definition_id
from schemas.messages import Command, derive
from tests.domains.examples import Internal, Step
from tests.domains.platform import TENANT, message_id

WORKFLOW = definition_id(TENANT, "workflow", "w")
SPEC = {"nodes": [{"id": "start", "type": "start", "config": {}}], "edges": []}
VERSION = version_id(message_id(2))


def checked(number: int) -> Internal:
    """The check that command `number` began has found nothing."""
    check_id = derive(message_id(number), "check")
    return Internal(TakeCheck(definition_id=WORKFLOW, version_id=VERSION, check_id=check_id))


GIVEN: tuple[Command | Internal, ...] = ()
STEPS: tuple[Step, ...] = (
    CreateDefinition(kind="workflow", code="w", name="W"),
    ChangeDefinition(definition_id=WORKFLOW, kind="workflow", name="other"),
    CreateVersion(definition_id=WORKFLOW, kind="workflow", spec=SPEC),
    checked(2),
    PublishVersion(definition_id=WORKFLOW, version_id=VERSION),
    checked(4),
)
