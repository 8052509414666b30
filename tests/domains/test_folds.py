"""Where a fold is a mapping by type and not a `match`, no event is forgotten."""

from __future__ import annotations

from typing import get_args

from projections.runtime_fold import NODE_FOLDS
from schemas import runtime


def test_every_event_of_a_node_run_is_folded() -> None:
    assert set(NODE_FOLDS) == set(get_args(runtime.NodeRunEvent))


def test_every_event_of_the_domain_is_of_a_run_or_of_a_node_run() -> None:
    assert set(runtime.EVENTS) == {*get_args(runtime.RunEvent), *get_args(runtime.NodeRunEvent)}
    assert {*get_args(runtime.RunEvent)} & {*get_args(runtime.NodeRunEvent)} == set()
