"""The kernel crashes at every named point, in one process on real Postgres and Kafka: nothing is lost or doubled."""

from __future__ import annotations

from pathlib import Path

from infra.chaos.crashes import POINTS, crash_test
from infra.local.embedded import EmbeddedStack
from infra.local.supervisor import Say
from infra.settings import load_settings
from tests.faults.conftest import LONG

CRASHES = 1_000 if LONG else 100


async def test_crashes_at_every_point_lose_and_double_nothing(services: EmbeddedStack, folder: Path, say: Say) -> None:
    settings = load_settings(
        database_url=services.database_url, kafka_bootstrap=services.kafka_bootstrap, data_dir=folder
    )
    report = await crash_test(settings, crashes=CRASHES, seed=1, say=say)
    say(str(report.document()))
    assert report.problems == []
    assert report.counts.total() >= CRASHES
    assert set(report.counts) == set(POINTS)
    assert min(report.counts.values()) > 0
