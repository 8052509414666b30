"""Somebody ends a scenario by Ctrl-C or SIGTERM: it leaves at once, and nothing of it goes on."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from infra.chaos.scene import scene
from infra.local.embedded.failures import StackError
from infra.local.embedded.processes import Identity, is_alive
from infra.local.supervisor import Say
from infra.settings import Settings
from tests.patience import patient


async def test_a_scenario_that_is_asked_to_stop_does_not_go_on_without_servers(settings: Settings, say: Say) -> None:
    async def interrupted() -> None:
        async with scene(settings, seed=1, say=say, workers=1, executors=0) as stage, asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait())
            workers.append(stage.faults.victim("worker", 0).identity)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    workers: list[Identity] = []
    with pytest.raises(StackError, match="stopped before its end"):
        async with asyncio.timeout(patient(60)):
            await interrupted()
    assert not is_alive(workers[0])
