"""A command that names another run's node run touches neither that run's rows nor what is said of it later."""

from __future__ import annotations

import uuid
from typing import Any

from handlers.catalog import version_id
from schemas import catalog, runtime
from schemas.messages import derive
from tests.domains.platform import TENANT, Platform, message_id, record

MINE, THEIRS = (str(uuid.UUID(int=number, version=4)) for number in (11, 12))
CODE = {"id": "a", "type": "code", "config": {"language": "python", "code": "def main():\n    return {}"}}


def node_of(platform: Platform, run_id: str) -> Any:
    (row,) = [row for row in platform.database.tables["node_run"].values() if row.run_id == run_id]
    return row


async def checked(platform: Platform, check: str, workflow: str, version: str) -> None:
    """The version's check found nothing."""
    found = catalog.TakeCheck(definition_id=workflow, version_id=version, check_id=derive(check, "check"))
    await platform.feed(record(found, message_id(20), reply=False))


async def test_a_node_run_named_under_another_run_stays_as_it_was() -> None:
    platform = Platform()
    await platform.claim()
    workflow = catalog.definition_id(TENANT, "workflow", "w")
    spec = {"nodes": [CODE], "edges": []}
    for number, command in enumerate(
        (
            catalog.CreateDefinition(kind="workflow", code="w", name="w"),
            catalog.CreateVersion(definition_id=workflow, kind="workflow", spec=spec, status="published"),
            runtime.CreateRun(run_id=MINE, workflow_id=workflow),
            runtime.CreateRun(run_id=THEIRS, workflow_id=workflow),
        )
    ):
        await platform.feed(record(command, message_id(number), reply=True))
        if isinstance(command, catalog.CreateVersion):
            await checked(platform, message_id(number), workflow, version_id(message_id(number)))
    before = node_of(platform, THEIRS)
    await platform.claim()  # With nothing in memory, rows are loaded by the ids that are named.
    foreign = runtime.SetNodeStatus(run_id=MINE, node_run_id=before.id, status="completed")
    await platform.feed(record(foreign, message_id(8), reply=True))
    await platform.feed(record(runtime.CancelRun(run_id=MINE), message_id(9), reply=True))
    outcomes = [outcome.status for outcome in platform.database.outcomes.values()]
    assert sorted(outcomes) == ["rejected", *["succeeded"] * 5]
    assert node_of(platform, MINE).status == "cancelled"
    assert node_of(platform, THEIRS) == before
