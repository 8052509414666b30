"""Hostile values: small ones that could grow large, ids that are not quite ids, names that could meet in one id."""

from __future__ import annotations

import asyncpg
import pydantic
import pytest

from bus.postgres import _PortErrors
from bus.store import Poison
from schemas import values
from schemas.messages import UUID_PATTERN, natural_id
from schemas.problems import POINTER_MAX
from schemas.runtime import CreateRun
from schemas.workflow.dsl import parse

LONG = "k" * 400_000


def test_a_long_key_above_many_items_costs_no_text_per_item() -> None:
    hostile: list[object] = ["\x00", *[0] * 500]  # The flaw is met last: all the others have been noted by then.
    with pytest.raises(values.InvalidValue) as caught:
        values.check({LONG: hostile})
    assert caught.value.code == "nul_character"
    assert len(caught.value.pointer) == values.POINTER_CHARACTERS_MAX


def test_a_pointer_is_escaped() -> None:
    with pytest.raises(values.InvalidValue) as caught:
        values.check({"a/b": [{"~": "\x00"}]})
    assert caught.value.pointer == "/a~1b/0/~0"


def test_a_long_key_above_many_flaws_is_not_repeated_by_each() -> None:
    node = {"id": "a", "type": "assigner", "config": {"assignments": {"x": {LONG: ["{{"] * 1_000}}}}
    _, problems = parse({"nodes": [node], "edges": []})
    assert problems
    assert max(len(problem.pointer) for problem in problems) <= POINTER_MAX


@pytest.mark.parametrize("tail", ["\n", "\n\n", " ", "0"])
def test_an_id_has_nothing_after_it(tail: str) -> None:
    id = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"
    assert UUID_PATTERN.match(id)
    assert not UUID_PATTERN.match(id + tail)
    with pytest.raises(pydantic.ValidationError):
        CreateRun(workflow_version_id=id + tail)


@pytest.mark.parametrize("committing", [True, False])
def test_what_the_driver_cannot_encode_is_poison_and_not_an_outage(committing: bool) -> None:
    class NotEncodable(asyncpg.InterfaceError, ValueError):
        """As asyncpg's own DataError, which it does not export."""

    with pytest.raises(Poison), _PortErrors(committing=committing):
        raise NotEncodable("invalid UUID")


def test_no_two_ways_to_name_something_meet_in_one_id() -> None:
    ways = [
        ("a", "workflow", "b", "c"),
        ("a", "workflow", "b\x1fc"),
        ("a\x1fworkflow", "b", "c"),
        ("a", "workflow", "b\x1e\x1dc"),
        ("a", "workflow", "b\x1e", "c"),
    ]
    assert len({natural_id(*way) for way in ways}) == len(ways)
