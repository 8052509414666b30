"""What `ap status` calls standing still: two looks at the same system."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bus.consumer import Held
from infra.operate.status import (
    LaneStatus,
    NoAnswer,
    OpenTransaction,
    Sample,
    document,
    judged,
    lines,
    look,
    standing_still,
)
from infra.settings import load_settings

IDLE_LANE = LaneStatus(3, "commands", 3, "worker-1", 1, next_offset=10, end_offset=10, position=7, sent=7, stopped="")
BEHIND = replace(IDLE_LANE, end_offset=15)
IDLE = Sample(lanes=(IDLE_LANE,), workers=("worker-1",))


def test_an_idle_system_stands_nowhere_still() -> None:
    assert not IDLE.seems_to_wait
    assert standing_still(IDLE, IDLE) == []


def test_a_lane_that_moves_is_not_standing_still_however_far_it_is_behind() -> None:
    before = replace(IDLE, lanes=(BEHIND,))
    after = replace(IDLE, lanes=(replace(BEHIND, next_offset=11, end_offset=900),))
    assert before.seems_to_wait
    assert standing_still(before, after) == []


def test_a_lane_that_has_just_got_records_is_given_time() -> None:
    assert standing_still(IDLE, replace(IDLE, lanes=(BEHIND,))) == []


def test_a_lane_that_handles_nothing_is_named() -> None:
    behind = replace(IDLE, lanes=(BEHIND,))
    assert standing_still(behind, behind) == ["lane commands/3 handles none of its 5 records (owner worker-1)"]


def test_a_transaction_that_stays_open_is_named_and_one_that_comes_and_goes_is_not() -> None:
    hanging = OpenTransaction("ingress", 3, 12, Held(17, 4, 1_790_000_000.0))
    before = replace(IDLE, open_transactions=(hanging,))
    assert before.seems_to_wait
    text = (
        "partition ingress/3 waits for an open transaction since 2026-09-21T14:13:20Z (producer 4, offset 17):"
        " 12 offsets are held back"
    )
    assert standing_still(before, replace(before, open_transactions=(replace(hanging, hidden=12),))) == [text]
    assert f"  open       {text}" in lines(before, [], every_lane=False)
    assert document(before, [])["open_transactions"] == [
        {
            "topic": "ingress",
            "partition": 3,
            "hidden": 12,
            "offset": 17,
            "producer_id": 4,
            "since": 1_790_000_000.0,
        }
    ]
    next_one = replace(hanging, held=Held(90, 4, 1_790_000_001.0))
    assert standing_still(before, replace(IDLE, open_transactions=(next_one,))) == []


def test_a_lane_that_sends_nothing_is_named() -> None:
    behind = replace(IDLE, lanes=(replace(IDLE_LANE, position=9),))
    assert behind.seems_to_wait
    assert standing_still(behind, behind) == ["lane commands/3 sends none of its 2 records to Kafka"]
    assert standing_still(behind, replace(IDLE, lanes=(replace(IDLE_LANE, position=99, sent=8),))) == []


def test_a_busy_lane_is_judged_by_what_it_has_sent_since_not_by_what_is_left() -> None:
    """It makes records faster than it notes them as sent: `unsent` grows, and everything moves."""
    before = replace(IDLE, lanes=(replace(IDLE_LANE, position=500, sent=400),))
    after = replace(IDLE, lanes=(replace(IDLE_LANE, position=9_000, sent=401),))
    assert standing_still(before, after) == []
    stuck = replace(IDLE, lanes=(replace(IDLE_LANE, position=9_000, sent=400),))
    assert standing_still(before, stuck) == ["lane commands/3 sends none of its 8600 records to Kafka"]


def test_a_lane_that_has_made_its_first_records_since_is_given_time() -> None:
    after = replace(IDLE, lanes=(replace(IDLE_LANE, position=99),))
    assert standing_still(IDLE, after) == []


def test_a_stopped_lane_is_named_with_its_reason() -> None:
    stopped = replace(IDLE, lanes=(replace(BEHIND, stopped="next offset 10 is beyond the topic's end 5"),))
    assert standing_still(stopped, stopped) == [
        "lane commands/3 has stopped: next offset 10 is beyond the topic's end 5"
    ]


def test_without_workers_nothing_else_is_said_of_the_lanes() -> None:
    alone = Sample(lanes=(BEHIND,))
    assert standing_still(alone, alone) == ["no worker runs"]


def test_steps_wait_in_vain_only_if_nobody_executes_their_kind() -> None:
    waiting = replace(IDLE, steps_ready={"code": 4})
    assert standing_still(waiting, waiting) == ["nobody executes the 4 code steps that wait"]
    assert standing_still(waiting, replace(waiting, steps_leased={"code": 1})) == []
    assert standing_still(waiting, IDLE) == []
    assert standing_still(IDLE, waiting) == []


def test_steps_that_come_and_go_between_two_looks_do_not_wait_in_vain() -> None:
    before = replace(IDLE, steps_ready={"code": 4}, steps_oldest={"code": 100.0})
    after = replace(IDLE, steps_ready={"code": 4}, steps_oldest={"code": 101.5})
    assert standing_still(before, after) == []
    assert standing_still(before, before) == ["nobody executes the 4 code steps that wait"]


def test_lost_leases_and_overdue_timers_are_counted() -> None:
    late = replace(IDLE, leases_expired=2, timers_overdue=1)
    assert standing_still(late, late) == [
        "2 steps have lost their lease and nobody takes them back",
        "1 timers are due for more than 10 s",
    ]


def test_people_see_lanes_that_wait_and_programs_see_all() -> None:
    seen = replace(IDLE, lanes=(IDLE_LANE, replace(BEHIND, id=4, partition=4)), steps_ready={"code": 2})
    text = "\n".join(lines(seen, ["something"], every_lane=False))
    assert "2 lanes, lag 5" in text
    assert "offset 10 of 15, lag 5" in text
    assert "offset 10 of 10" not in text
    assert "offset 10 of 10" in "\n".join(lines(seen, [], every_lane=True))
    assert text.endswith("Standing still: something")
    shown = document(seen, ["something"])
    assert [lane["lag"] for lane in shown["lanes"]] == [0, 5]
    assert shown["steps"]["ready"] == {"code": 2}
    assert shown["standing_still"] == ["something"]


async def judge(*looks: Sample) -> tuple[int, list[str]]:
    """How many of these looks it takes, and what stands still by them."""
    left = list(looks)

    async def take() -> Sample:
        return left.pop(0)

    _, problems = await judged(take, 0)
    return len(looks) - len(left), problems


async def test_it_is_looked_once_more_only_while_something_waits_and_does_not_move() -> None:
    behind = replace(IDLE, lanes=(BEHIND,))
    moved = replace(IDLE, lanes=(replace(BEHIND, next_offset=11),), at=6.0)
    assert await judge(IDLE, behind) == (1, [])
    assert await judge(behind, replace(behind, at=2.0), replace(behind, at=4.0), moved, behind) == (4, [])
    looks, problems = await judge(*(replace(behind, at=at) for at in (0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0)))
    assert (looks, problems) == (6, ["lane commands/3 handles none of its 5 records (owner worker-1)"])


async def test_servers_that_are_away_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(database_url="postgresql://nobody@127.0.0.1:1/none", kafka_bootstrap="127.0.0.1:1")
    with pytest.raises(NoAnswer, match="Postgres does not answer"):
        await look(settings)
