"""What `ap status --watch` draws."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console, Group

from infra.database.waiting import Units
from infra.local.watch import body, rates, seconds
from infra.operate.status import LaneStatus, Sample

LANE = LaneStatus(3, "commands", 3, "worker-1", 1, next_offset=10, end_offset=10, position=7, sent=7, stopped="")
SEEN = Sample(lanes=(LANE, replace(LANE, id=4, partition=4)), workers=("worker-1",), at=100.0)


def drawn(*samples: Sample, every_lane: bool = False) -> str:
    console = Console(width=140, height=60, record=True, file=io.StringIO())
    console.print(Group(*body(samples, every_lane=every_lane, rows=20)))
    return console.export_text()


def test_rates_are_what_happened_between_the_last_two_looks() -> None:
    ends = {"runtime.run_completed": 3, "runtime.run_failed": 1}
    events = {"runtime.node_dispatched": 30, "runtime.run_created": 4, **ends}
    moved = replace(LANE, next_offset=50, position=107)
    after = replace(SEEN, lanes=(moved, SEEN.lanes[1]), at=102.0, new_events=events)
    assert rates([SEEN, after]) == {
        "records handled": 20,
        "records made": 50,
        "events": 19,
        "steps begun": 15,
        "runs begun": 2,
        "runs ended": 2,
    }
    assert rates([SEEN]) == {}


def test_lanes_that_wait_are_drawn_with_the_age_of_their_oldest_record() -> None:
    behind = replace(LANE, end_offset=1_010, oldest_seconds=4.2)
    text = drawn(replace(SEEN, lanes=(behind, SEEN.lanes[1])))
    assert "commands/3" in text
    assert "1000" in text
    assert "4 s" in text
    assert "commands/4" not in text
    assert "1 others" in text
    assert "commands/4" in drawn(SEEN, every_lane=True)


def test_stopped_lanes_come_first_and_say_why() -> None:
    stopped = replace(LANE, id=4, partition=4, stopped="offset 9 is beyond its topic")
    text = drawn(replace(SEEN, lanes=(replace(LANE, end_offset=99), stopped)))
    assert text.index("commands/4") < text.index("commands/3")
    assert "Standing still: lane commands/4 has stopped: offset 9 is beyond its topic" in text


def test_what_does_not_move_is_called_still_only_after_a_while() -> None:
    behind = replace(SEEN, lanes=(replace(LANE, end_offset=99),))
    assert "Standing still" not in drawn(behind, replace(behind, at=104.0))
    assert "handles none of its 89 records" in drawn(behind, replace(behind, at=109.9))


def test_what_waits_is_drawn_with_its_age() -> None:
    text = drawn(replace(SEEN, waiting={"dead_letters": Units(3, 7_300.0), "steps": Units(12, 0.5)}))
    assert "dead letters" in text
    assert "2 h" in text
    assert "0.50 s" in text


def test_ages_are_said_as_people_say_them() -> None:
    assert [seconds(age) for age in (0.004, 59.6, 119, 600, 90_000)] == ["0.00 s", "60 s", "119 s", "10 min", "25 h"]
