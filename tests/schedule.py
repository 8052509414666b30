"""Which tests go to one process together, and which ones run beside each other.

Each process has a Postgres and a Kafka of its own as soon as one of its tests asks for them. Tests that start whole
platforms run one after another, in the first process; the others begin at the other end, with what only computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

APART = ("tests/simulation/test_simulation.py", "tests/infra/test_topics.py")
"""Files without fixtures that last, whose tests take long: each of them may run anywhere."""


def rank(item: pytest.Item) -> int:
    """0: starts servers and whole platforms; 1: asks for the servers of its process; 2: only computes."""
    if item.get_closest_marker("platforms"):
        return 0
    return 1 if item.get_closest_marker("services") else 2


def ordered(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """By rank of their files, else as they were: a file is not torn apart."""
    items = list(items)
    ranks: dict[str, int] = {}
    for item in items:
        place = unit(item.nodeid)
        ranks[place] = min(ranks.get(place, 2), rank(item))
    return sorted(items, key=lambda item: ranks[unit(item.nodeid)])


def unit(nodeid: str) -> str:
    """What stays together: a file, as its fixtures may last as long as it; else the test."""
    path = nodeid.partition("::")[0]
    return nodeid if path in APART else path


class FromBothEnds(LoadScopeScheduling):
    """The first process takes units from the beginning of the list, the others from its end."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        if node is not self.nodes[0]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)
