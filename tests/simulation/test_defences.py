"""The control arm: with one defence turned off, the simulation must find out."""

from collections.abc import Iterator

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

pytestmark = pytest.mark.simulation


def problems(defences: Defences) -> Iterator[list[str]]:
    for seed in range(SEEDS_MAX):
        yield simulate(World(seed, defences=defences, rates=HARD)).problems


@pytest.mark.parametrize(
    ("defences", "notice"),
    [
        pytest.param(Defences(inbox=False), "outcomes: ", id="inbox"),
        pytest.param(Defences(fence=False), "", id="fence"),
        pytest.param(Defences(drain=False), "events_topic: ", id="drain"),
        pytest.param(Defences(lease_token=False), "tokens: ", id="lease token"),
        pytest.param(Defences(order=False), "events_topic: ", id="order of sends"),
        pytest.param(Defences(dead_letters=False), "letters: ", id="dead letters"),
        pytest.param(Defences(lasting_leases=False), "stuck: ", id="leases of lasting steps"),
        pytest.param(Defences(left_leases=False), "stuck: ", id="leases left by a former owner"),
    ],
)
def test_without_a_defence_something_breaks(defences: Defences, notice: str) -> None:
    assert any(problem.startswith(notice) for found in problems(defences) for problem in found)


def test_with_all_defences_the_same_seeds_break_nothing() -> None:
    assert not any(found for found, _ in zip(problems(Defences()), range(20), strict=False))
