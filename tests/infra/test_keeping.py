"""Whatever ends a server or a role, or keeps it from starting: it is started again, and it is said why it waits."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.cli.local import status_document
from infra.local.embedded.failures import StackError
from infra.local.embedded.processes import is_alive
from infra.local.embedded.state import DataFolder, State, read_state
from infra.local.keeping import BACK_OFF_SECONDS_MAX, BACK_OFF_SECONDS_MIN, Keeper, how
from infra.local.role_process import RoleProcess

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/log")
NO_FILES = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
NO_FORK = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
NO_PORT = StackError("Kafka did not start (port 20001 is taken)", "see kafka.log")


class Fake:
    """A unit whose attempts to start end as told, the last one well; it has died once before."""

    name = "kafka"

    def __init__(self, *ends: BaseException) -> None:
        self.ends = list(ends)
        self.status: int | None = 1
        self.attempts = 0

    async def start(self) -> None:
        self.attempts += 1
        if self.ends:
            self.status = None
            raise self.ends.pop(0)
        self.status = None

    def exit_status(self) -> int | None:
        return self.status


class Kept:
    """A keeper at work on a fake, with time that passes at once: until the unit has run for a while."""

    def __init__(self, unit: Fake, *, fails_to_say: bool = False) -> None:
        self.unit = unit
        self.said: list[str] = []
        self.notes: list[str] = []
        self.pauses: list[float] = []
        self._fails_to_say = fails_to_say
        self.keeper = Keeper(unit, say=self._say, note=self._note, healthy_seconds=30, pause=self._pass)

    async def until_it_runs(self, looks: int = 3) -> None:
        task = asyncio.create_task(self.keeper.run())
        for _ in range(1_000):
            await asyncio.sleep(0)
            if task.done() or (not self.unit.ends and self.pauses[-looks:] == [0.05] * looks):
                break
        assert not task.done(), f"the keeper has given up: {task.exception()!r}"
        task.cancel()

    async def _pass(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    def _say(self, text: str) -> None:
        self.said.append(text)
        if self._fails_to_say:
            raise NO_SPACE

    def _note(self, name: str, reason: str) -> None:
        self.notes.append(reason)
        if self._fails_to_say:
            raise NO_SPACE


@pytest.mark.parametrize("fails_to_say", [False, True])
@pytest.mark.parametrize(
    "error",
    [NO_SPACE, NO_FILES, NO_FORK, NO_PORT, MemoryError(), RuntimeError("can't start new thread"), ValueError("?")],
    ids=lambda error: type(error).__name__ if not getattr(error, "errno", 0) else errno.errorcode[error.errno],
)
async def test_no_error_ends_it(error: BaseException, fails_to_say: bool) -> None:
    kept = Kept(Fake(*[error] * 12), fails_to_say=fails_to_say)
    await kept.until_it_runs()
    assert kept.unit.attempts == 13
    waits = [pause for pause in kept.pauses if pause != 0.05]
    assert waits == [min(BACK_OFF_SECONDS_MIN * 2**n, BACK_OFF_SECONDS_MAX) for n in range(13)]


async def test_it_says_why_whenever_that_changes_and_only_then() -> None:
    kept = Kept(Fake(NO_SPACE, NO_SPACE, NO_FORK, NO_FORK, NO_FORK, NO_PORT))
    await kept.until_it_runs()
    assert kept.said == [
        "kafka ended (exit code 1); starting it again in 0.5 s",
        "kafka does not start: No space left on device: /data/log; starting it again in 1 s",
        "kafka does not start: Resource temporarily unavailable; starting it again in 4 s",
        "kafka does not start: Kafka did not start (port 20001 is taken): see kafka.log; starting it again in 30 s",
    ]
    assert kept.notes == [
        "ended (exit code 1)",
        "does not start: No space left on device: /data/log",
        "does not start: Resource temporarily unavailable",
        "does not start: Kafka did not start (port 20001 is taken): see kafka.log",
        "",
    ]


async def test_what_cannot_be_started_for_the_first_time_is_tried_again() -> None:
    unit = Fake(NO_FORK)
    unit.status = None
    kept = Kept(unit)
    await kept.keeper.start()
    await kept.until_it_runs()
    assert unit.attempts == 2


def test_how_a_process_ended_is_said_for_every_code() -> None:
    assert [how(status) for status in (0, 3, -9, -200)] == ["exit code 0", "exit code 3", "SIGKILL", "signal 200"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    made = DataFolder(tmp_path)
    made.acquire()
    yield made
    made.release()


def test_why_something_waits_is_kept_for_whoever_asks(folder: DataFolder) -> None:
    folder.record_waiting("kafka", "does not start: no space")
    folder.record_waiting("worker-0", "ended (SIGKILL)")
    folder.record_waiting("worker-0", "")
    assert state_of(folder).waiting == {"kafka": "does not start: no space"}
    assert status_document(folder.path)["waiting"] == {"kafka": "does not start: no space"}


async def test_a_role_that_cannot_be_recorded_does_not_run(folder: DataFolder) -> None:
    """On a full disk: nobody would stop it, and a second one would be started beside it."""
    started: list[int] = []

    class Full(DataFolder):
        def record_process(self, role: Any, index: int, pid: int, log: Path, metrics_port: int = 0) -> None:
            started.append(pid)
            raise NO_SPACE

    role = RoleProcess("worker", 0, Full(folder.path), dict(os.environ), "http.server")
    with pytest.raises(OSError, match="No space"):
        await role.start()
    assert role.exit_status() is None
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


FULL = """
import asyncio, sys
from pathlib import Path
from infra.local.embedded.state import DataFolder
from infra.local.keeping import Keeper
from infra.local.role_process import RoleProcess

async def main():
    folder = DataFolder(Path(sys.argv[1]))
    folder.acquire()
    role = RoleProcess("worker", 0, folder, {}, "this_ends_at_once")
    keeper = Keeper(role, say=lambda text: print(text, flush=True), note=folder.record_waiting, healthy_seconds=30)
    await keeper.start()
    await keeper.run()

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    """A folder of 256 KiB, filled while a role ends again and again, and freed: it is started again."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this machine mounts nothing for us: {mounted.stderr.strip()}")
    try:
        with subprocess.Popen([sys.executable, "-c", FULL, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout is not None
            assert "worker-0 ended" in owner.stdout.readline()
            filler = (tmp_path / "filler").open("wb", buffering=0)
            with filler, pytest.raises(OSError, match="No space"):
                filler.writelines(bytes(4096) for _ in range(1_000))
            lines = iter(owner.stdout.readline, "")
            assert any("No space left on device" in line for line in lines)
            (tmp_path / "filler").unlink()
            assert any("worker-0 ended (exit code 1)" in line for line in lines)
            state = read_state(tmp_path)
            owner.kill()
        assert state is not None
        assert not any(is_alive(process.identity) for process in state.processes)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def state_of(folder: DataFolder) -> State:
    state = read_state(folder.path)
    assert state is not None
    return state
