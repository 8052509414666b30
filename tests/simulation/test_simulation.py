"""Seeds of the whole platform in memory under faults: no invariant breaks, and every run is as the rules say.

Which seeds, says tests/simulation/seeds.py. One that fails is run again, with its whole story, by
`python -m tests.simulation.world SEED -v`.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields

import pytest

from tests.simulation import seeds
from tests.simulation.faults import Rates
from tests.simulation.world import World, simulate

POINTS = """
    poll before_claim after_claim unsent locked load before_commit before_write after_commit before_send
    after_send executing
"""

pytestmark = pytest.mark.simulation


@pytest.mark.parametrize("batch", seeds.batches(os.environ, seeds.checked_out()), ids=lambda all: f"from {all[0]}")
def test_no_seed_breaks_an_invariant(batch: tuple[int, ...]) -> None:
    broken = []
    for seed in batch:
        world = simulate(World(seed))
        if world.problems:
            broken.append(
                f"{sys.executable} -m tests.simulation.world {seed} -v\n    " + "\n    ".join(world.problems[:5])
            )
    assert not broken, "\n".join(["run again with:", *broken])


@pytest.mark.slow
def test_every_kind_of_fault_comes_true() -> None:
    """Else the seeds would show nothing."""
    counts: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for seed in range(40):
        world = simulate(World(seed, rates=Rates(crash=0.015, zombie=0.01)))
        counts.update(world.faults.counts)
        ends.update(row.status for row in world.database.tables["run"].values())
        counts["letters"] += len(world.database.letters)
        counts["repeats"] += sum(row.requeues for row in world.database.tables["node_run"].values())
    assert {each.name for each in fields(Rates)} <= set(counts)
    assert {f"crash at {point}" for point in POINTS.split()} <= set(counts)
    assert {f"zombie at {point}" for point in POINTS.split()} <= set(counts)
    assert {"completed", "failed", "cancelled", "compensated"} == set(ends)
    assert counts["letters"]
    assert counts["repeats"]


def story(world: World) -> str:
    return "\n".join([*world.notes, *(f"{key} {event}" for key, event in world.database.events.items())])


def test_a_seed_decides_everything() -> None:
    assert story(simulate(World(7))) == story(simulate(World(7)))


def test_a_seed_decides_the_same_in_every_process() -> None:
    """Also under another order of sets, which Python draws anew for each process."""
    command = [sys.executable, "-m", "tests.simulation.world", "11", "-v"]
    stories = {
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert len(stories) == 1


def test_seeds_move_with_the_commit() -> None:
    asked = {"SIMULATION_SEEDS": "50"}
    one, other = (_moving(asked, commit) for commit in ("1f" * 20, "2e" * 20))
    assert len(one) == len(other) == 50
    assert not set(one) & set(other)
    assert _moving(asked, "1f" * 20) == one, "the same again"
    assert _moving(asked | {"SIMULATION_FIRST": "7"}, "1f" * 20) == list(range(7, 57)), "or those that are asked for"
    assert len(_moving({}, "")) == seeds.SEEDS_A_PUSH


def _moving(environment: Mapping[str, str], commit: str) -> list[int]:
    found = [seed for batch in seeds.batches(environment, commit) for seed in batch]
    assert found[: len(seeds.ONCE_FAILED)] == list(seeds.ONCE_FAILED), "those that once failed are always there"
    return found[len(seeds.ONCE_FAILED) :]
