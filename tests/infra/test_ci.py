"""`.ci/run` ends when it is told to or when its time is over, and nothing of its tests goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.local.embedded.processes import Identity, identify, is_alive
from infra.local.embedded.state import read_state
from tests.infra.test_stack import until
from tests.patience import patient

pytestmark = [pytest.mark.services, pytest.mark.platforms]

ROOT = Path(__file__).parents[2]
HANGING = """
import asyncio, signal, subprocess, sys, tempfile
from pathlib import Path
from infra.local.embedded import EmbeddedStack

def test_hangs():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    outlives = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    async def main():
        async with EmbeddedStack(Path(tempfile.mkdtemp()), with_kafka=False):
            Path("outlives").write_text(str(outlives.pid))
            await asyncio.sleep(3600)
    asyncio.run(main())
"""
PASSING = "def test_passes(): pass"
Start = Callable[[str, float], "Run"]


class Run:
    """`.ci/run` in a folder with a test of its own."""

    def __init__(self, folder: Path, test: str, seconds_max: float) -> None:
        (folder / ".ci").mkdir()
        (folder / "tmp").mkdir()
        shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
        (folder / ".venv").symlink_to(Path(sys.prefix))
        (folder / "test_it.py").write_text(test)
        (folder / "Makefile").write_text("test:\n\t@.venv/bin/python -m pytest -p no:cacheprovider test_it.py\n")
        self.folder = folder
        self.process = subprocess.Popen(
            [folder / ".ci" / "run"],
            env=os.environ | {"TMPDIR": str(folder / "tmp"), "CI_SECONDS_MAX": f"{seconds_max:.0f}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def started(self) -> list[Identity]:
        """What the hanging test has started, once all of it runs: a server, and a process that nobody knows of."""
        outlives = self.folder / "outlives"
        until(lambda: self.process.poll() is not None or (outlives.exists() and outlives.read_text().isdigit()))
        assert self.process.poll() is None, "\n".join(self.ended()[1])
        states = [read_state(path.parent) for path in (self.folder / "tmp").rglob("state.json")]
        servers = [process.identity for state in states if state is not None for process in state.processes]
        stray = identify(int(outlives.read_text()))
        assert servers
        assert stray is not None
        return [*servers, stray]

    def ended(self) -> tuple[int, list[str]]:
        said, _ = self.process.communicate(timeout=patient(60))
        return self.process.returncode, said.splitlines()


@pytest.fixture
def start() -> Iterator[Start]:
    """Start it with a test and a time-out; at the end nothing of it may be there any more."""
    folder = Path(tempfile.mkdtemp(prefix="ap-c-"))  # Paths of unix sockets are short, those of pytest's folders not.
    begun: list[Run] = []

    def run(test: str, seconds_max: float) -> Run:
        begun.append(Run(folder, test, seconds_max))
        return begun[-1]

    yield run
    for each in begun:
        if each.process.poll() is None:
            each.process.terminate()
            each.ended()
    left = list((folder / "tmp").iterdir())
    shutil.rmtree(folder)
    assert left == []
    for process in psutil.process_iter():
        try:
            mine = str(folder) in process.environ().get("TMPDIR", "")
        except psutil.Error:
            continue
        assert not mine, process


def test_the_last_line_is_the_summary(start: Start) -> None:
    code, said = start(PASSING, 3_600).ended()
    assert code == 0
    assert "1 passed" in said[-1]
    assert sum("1 passed" in line for line in said) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_with_all_its_servers(start: Start, number: signal.Signals) -> None:
    run = start(HANGING, 3_600)
    started = run.started()
    run.process.send_signal(number)
    code, said = run.ended()
    assert code == 128 + number
    assert said[-1].startswith("====")
    assert not any(is_alive(identity) for identity in started)


def test_the_time_out_ends_it_with_all_its_servers(start: Start) -> None:
    run = start(HANGING, patient(5))
    started = run.started()
    code, said = run.ended()
    assert code == 124
    assert said[-1].startswith("====")
    assert " in " in said[-1], "pytest itself has told what became of the tests"
    assert not any(is_alive(identity) for identity in started)
