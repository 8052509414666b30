"""Scenarios of chaos runs that take a while each: restarts in turn, lost topics, control arms, everything mixed."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from infra.chaos.control import ARMS, control_test
from infra.chaos.mix import mix_test
from infra.chaos.rolling import rolling_test
from infra.chaos.topics import topics_test
from infra.local.supervisor import Say
from infra.settings import Settings, load_settings
from tests.faults.conftest import LONG

long = pytest.mark.skipif(not LONG, reason="takes minutes")


@long
async def test_a_rolling_restart_fails_no_request_and_repeats_no_step(settings: Settings, say: Say) -> None:
    report = await rolling_test(settings, seed=6, rounds=2, say=say)
    say(orjson.dumps(report.document()).decode())
    assert report.problems == []
    assert len(report.restarted) == 10


@long
async def test_what_topics_and_group_offsets_hold_is_no_truth(settings: Settings, say: Say) -> None:
    report = await topics_test(settings, seed=7, say=say)
    say(orjson.dumps(report.document()).decode())
    assert report.problems == []
    assert len(report.conclusions) == 4
    assert report.said
    assert all("next offset" in reason for reason in report.said)


@long
async def test_without_any_one_defence_a_check_turns_red(folder: Path, say: Say) -> None:
    def settings(name: str) -> Settings:
        return load_settings(data_dir=folder / name.replace(" ", "-"), gateway_port=0, auth_required=False)

    report = await control_test(settings, tuple(ARMS), seed=1, say=say)
    say(report.table())
    assert set(report.red) == set(ARMS)
    assert report.armed == []


@long
async def test_faults_of_every_kind_lose_and_double_nothing(settings: Settings, say: Say) -> None:
    report = await mix_test(settings, seconds=180, runs_per_second=12, seed=8, say=say)
    say(orjson.dumps(report.document()).decode())
    assert report.conclusion.problems == []
    assert report.conclusion.progress >= 0.9
