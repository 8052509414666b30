"""The control arm: with one defence turned off, the simulation must find out."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bus.limits import Defences
from tests.simulation.faults import Rates
from tests.simulation.world import World, simulate

SEEDS_MAX = 300
HARD = Rates(
    crash=0.01,
    zombie=0.01,
    rebalance=0.8,
    lost_send=0.03,
    doubled_send=0.1,
    slow_executor=0.2,
    repeated_request=0.5,
)
EXECUTORS_LOST = replace(HARD, lost_executor=0.5, rebalance=0.1, crash=0.002, zombie=0.002)
"""Executors are lost while lanes stay: the claim of a next owner would list what they held."""

pytestmark = pytest.mark.simulation


def problems(defences: Defences, rates: Rates) -> Iterator[list[str]]:
    for seed in range(SEEDS_MAX):
        yield simulate(World(seed, defences=defences, rates=rates)).problems


@pytest.mark.parametrize(
    ("defences", "notice", "rates"),
    [
        pytest.param(Defences(inbox=False), "outcomes: ", HARD, id="inbox"),
        pytest.param(Defences(fence=False), "", HARD, id="fence"),
        pytest.param(Defences(drain=False), "events_topic: ", HARD, id="drain"),
        pytest.param(Defences(lease_token=False), "tokens: ", HARD, id="lease token"),
        pytest.param(Defences(order=False), "events_topic: ", HARD, id="order of sends"),
        pytest.param(Defences(dead_letters=False), "letters: ", HARD, id="dead letters"),
        pytest.param(Defences(lasting_leases=False), "stuck: ", EXECUTORS_LOST, id="leases of lasting steps"),
        pytest.param(Defences(left_leases=False), "stuck: ", HARD, id="leases left by a former owner"),
    ],
)
def test_without_a_defence_something_breaks(defences: Defences, notice: str, rates: Rates) -> None:
    assert any(problem.startswith(notice) for found in problems(defences, rates) for problem in found)


@pytest.mark.parametrize("rates", [HARD, EXECUTORS_LOST], ids=["hard", "executors lost"])
def test_with_all_defences_the_same_seeds_break_nothing(rates: Rates) -> None:
    assert not any(found for found, _ in zip(problems(Defences(), rates), range(20), strict=False))
