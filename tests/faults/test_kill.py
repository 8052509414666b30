"""Roles and servers die by kill -9 in mid-load: every accepted run ends as it must, once."""

from __future__ import annotations

import orjson
import pytest

from infra.chaos.kill import VICTIMS, KillReport, Plan, kill_test
from infra.local.supervisor import Say
from infra.settings import Settings
from tests.faults.conftest import LONG


async def test_nothing_is_lost_or_doubled_when_everything_dies_in_turn(settings: Settings, say: Say) -> None:
    plan = Plan(runs=2_000, seconds=150, kills=32, seed=1) if LONG else Plan(runs=260, seconds=26, kills=6, seed=1)
    report = await kill_test(settings, plan, say)
    _show(report, say)
    assert report.problems == []
    assert report.conclusion.accepted == plan.runs
    killed = [kill.name for kill in report.kills]
    assert len(killed) == plan.kills
    assert len(report.servers) == 2
    assert min(killed.count(name) for name in VICTIMS) >= (5 if LONG else 1)


@pytest.mark.skipif(not LONG, reason="takes a quarter of an hour")
async def test_two_hundred_killed_gateways_and_clients_that_retry(settings: Settings, say: Say) -> None:
    plan = Plan(runs=10_000, seconds=900, kills=200, seed=2, servers=False, victims=("gateway-0",), vias=("http",))
    report = await kill_test(settings, plan, say)
    _show(report, say)
    assert report.problems == []
    assert len(report.kills) == 200
    assert report.conclusion.accepted == 10_000


def _show(report: KillReport, say: Say) -> None:
    say(orjson.dumps(report.document(), option=orjson.OPT_INDENT_2).decode())
