"""Nothing waits without a word: a start is bounded, and whoever waits says what for."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

import pytest

from infra.local.embedded.failures import StackError
from infra.local.embedded.kafka import Kafka
from infra.local.embedded.processes import Patience
from infra.roles.reachable import until_reachable
from infra.settings import load_settings


async def test_patience_says_what_is_missing_and_ends() -> None:
    said: list[str] = []
    patience = Patience("Kafka", 0.05, said.append, say_every_seconds=0.0)
    assert not await patience.until(lambda: False, "does not listen yet")
    assert said
    assert set(said) == {"Kafka was started 0 s ago and does not listen yet"}
    assert (patience.left_seconds, patience.spent) == (0, " within 0.05 seconds")
    assert await Patience("Kafka", 60, said.append).until(lambda: True, "")


@pytest.mark.parametrize("listens", [True, False])
async def test_a_broker_that_never_answers_ends_in_an_error(listens: bool, tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexec sleep 600\n")
    java.chmod(0o755)
    (tmp_path / "kafka" / "data").mkdir(parents=True)
    (tmp_path / "kafka" / "data" / "meta.properties").touch()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        kafka = Kafka(tmp_path / "kafka", tmp_path / "log", start_seconds_max=0.5)
        kafka.prepare(java, [tmp_path / "a.jar"], port if listens else free(), 1)
        with pytest.raises(StackError, match=r"Kafka did not start within 0\.5 seconds"):
            await kafka.start()
    assert kafka.exit_status() is None


async def test_a_role_says_which_server_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    port = free()
    settings = load_settings(database_url=f"postgresql://u@127.0.0.1:{port}/x", kafka_bootstrap=f"127.0.0.1:{port}")
    stop = asyncio.Event()
    with caplog.at_level(logging.WARNING):
        waiting = asyncio.create_task(until_reachable(settings, stop))
        while not caplog.messages:
            await asyncio.sleep(0.01)
        for _ in range(50):
            await asyncio.sleep(0.01)
        stop.set()
        assert await waiting is False
    (message,) = caplog.messages
    assert message.startswith("waiting for Postgres, for 0 s now: ")


def free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
