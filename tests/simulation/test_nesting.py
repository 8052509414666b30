"""A workflow that starts itself: each run starts the next one, down to the limit."""

from collections.abc import Coroutine
from typing import Any

import pytest

from schemas import runtime as wire
from tests.simulation.clients import Clients
from tests.simulation.scenarios import Oracle, Scenario
from tests.simulation.world import World, simulate

pytestmark = pytest.mark.simulation


def starting_itself(**config: Any) -> Scenario:
    children: dict[str, Scenario | str] = {}
    scenario = Scenario(
        seed=0,
        dsl={
            "nodes": [
                {"id": "work", "type": "code", "config": {"code": "result = payload"}},
                {"id": "again", "type": "workflow", "config": {"inputs": {"客户": "{{inputs.客户}}x"}, **config}},
                {"id": "end", "type": "end", "config": {"outputs": {"客户": "{{inputs.客户}}"}}},
            ],
            "edges": [{"source": "work", "target": "again"}, {"source": "again", "target": "end"}],
        },
        inputs={"客户": "阿里"},
        effects=Oracle(0, {}, children=children),
    )
    children["again"] = scenario
    return scenario


class Nesting(Clients):
    """Only such a workflow."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        super().__init__(world)
        self.scenario = scenario

    def plays(self) -> list[Coroutine[Any, Any, None]]:
        return [self.nest()]

    async def nest(self) -> None:
        self.root = await self._start(self.scenario, "tenant-0", "again")


def nested(seed: int, scenario: Scenario) -> World:
    world = World(seed)
    world.clients = Nesting(world, scenario)
    return simulate(world)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("config", "ended"), [({"on_error": "continue"}, "completed"), ({}, "failed")])
def test_runs_nest_down_to_the_limit(seed: int, config: dict[str, Any], ended: str) -> None:
    world = nested(seed, starting_itself(**config))
    assert world.problems == []
    runs = world.database.tables["run"]
    below = [runs[id] for id in world.clients.started]
    assert [row.status for row in below] == [ended] * (wire.DEPTH_MAX + 1), f"seed {seed}"
    deepest = next(row for row in below if (row.origin or {}).get("depth") == wire.DEPTH_MAX)
    assert deepest.inputs == {"客户": "阿里" + "x" * wire.DEPTH_MAX}
    errors = [
        row.error
        for row in world.database.tables["node_run"].values()
        if row.run_id == deepest.id and row.path == "again"
    ]
    assert [error["code"] for error in errors] == ["depth_exceeded"]
