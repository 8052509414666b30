"""A command that names another run's node run touches neither that run's rows nor what is said of it later."""

from __future__ import annotations

import uuid
from typing import Any

from schemas import catalog, runtime
from tests.simulation.generator import generate
from tests.specs.test_twice import LANES, TENANT, Platform

MINE, THEIRS = (str(uuid.UUID(int=number, version=4)) for number in (11, 12))
CODE = {"id": "a", "type": "code", "config": {"language": "python", "code": "def main():\n    return {}"}}


def node_of(platform: Platform, run_id: str) -> Any:
    (row,) = [row for row in platform.database.tables["node_run"].values() if row.run_id == run_id]
    return row


async def checked(platform: Platform) -> None:
    """All that is made comes back, and what checks answer."""
    while platform.made or (checks := [out for out in platform.answers() if out.key not in (MINE, THEIRS)]):
        out = platform.made.popleft() if platform.made else checks[0]
        await platform.feed(out)


async def test_a_node_run_named_under_another_run_stays_as_it_was() -> None:
    platform = Platform(generate(0))
    await platform.kernel.claim(range(LANES))
    workflow = catalog.definition_id(TENANT, "workflow", "w")
    spec = {"nodes": [CODE], "edges": []}
    for command in (
        catalog.CreateDefinition(kind="workflow", code="w", name="w"),
        catalog.CreateVersion(definition_id=workflow, kind="workflow", spec=spec, status="published"),
        runtime.CreateRun(run_id=MINE, workflow_id=workflow),
        runtime.CreateRun(run_id=THEIRS, workflow_id=workflow),
    ):
        await platform.feed(platform.ask(command))
        await checked(platform)
    before = node_of(platform, THEIRS)
    await platform.kernel.claim(range(LANES))  # With nothing in memory, rows are loaded by the ids that are named.
    foreign = runtime.SetNodeStatus(run_id=MINE, node_run_id=before.id, status="completed")
    asked = platform.ask(foreign)
    await platform.feed(asked)
    await platform.feed(platform.ask(runtime.CancelRun(run_id=MINE)))
    outcomes = [outcome.status for outcome in platform.database.outcomes.values()]
    assert sorted(outcomes) == ["rejected", *["succeeded"] * 5]
    assert node_of(platform, MINE).status == "cancelled"
    assert node_of(platform, THEIRS) == before
