"""Two workers become four and two again, and sixteen members come and go, under load: nothing is lost or doubled."""

from __future__ import annotations

import orjson

from infra.chaos.scale import MEMBERS, scale_test
from infra.local.supervisor import Say
from infra.settings import Settings
from tests.faults.conftest import LONG

SECONDS = 120.0 if LONG else 20.0


async def test_workers_and_members_come_and_go_under_load(settings: Settings, say: Say) -> None:
    report = await scale_test(settings, seconds=SECONDS, seed=3, say=say)
    say(orjson.dumps(report.document(), option=orjson.OPT_INDENT_2).decode())
    assert report.problems == []
    assert [what for what, _ in report.take_over] == ["to 4 workers", "to 2 workers"]
    assert report.members_max >= MEMBERS
    assert report.joined + report.left >= SECONDS / 8
    assert report.claims > MEMBERS
