"""`ap up` as a user runs it: everything starts, dead roles come back, everything stops."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from infra.cli.app import app
from infra.local.embedded.processes import Identity, identify, is_alive
from tests.patience import patient

pytestmark = [pytest.mark.services, pytest.mark.platforms]

PATIENCE_SECONDS = patient(60.0)


class Running:
    """One `ap up` in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "up", "--port", "0", *options],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("Ctrl-C"):
                return
        pytest.fail("".join(self.said))

    def status(self) -> dict[str, Any]:
        """What `ap status` says; asked in this process, for it is asked often."""
        done = CliRunner().invoke(app, ["status", "--json", "--data", str(self.folder / ".ap")])
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def is_well(self) -> bool:
        """Whether every lane is owned by a worker that runs, and nothing stands still."""
        status = self.status()
        owners = {lane["owner"] for lane in status["lanes"]}
        # The group counts a member that was killed until its session ends; its pid has gone at once.
        running = {f"worker-{entry['pid']}-" for entry in status["roles"] if entry["role"] == "worker"}
        held = all(any(owner.startswith(name) for name in running) for owner in owners)
        return held and not status["standing_still"] and owners <= set(status["workers"])

    def call(self, method: str, path: str, **body: Any) -> httpx.Response:
        return httpx.request(
            method, f"{self.status()['gateway_url']}/gateway{path}", json=body or None, timeout=patient(40)
        )

    def pids(self, role: str) -> list[int]:
        return [entry["pid"] for entry in self.status()["roles"] if entry["role"] == role and entry["alive"]]

    def identities(self) -> list[Identity]:
        found = [identify(entry["pid"]) for entry in self.status()["roles"]]
        return [identity for identity in found if identity is not None]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    stack = Running(tmp_path, "--workers", "2")
    try:
        yield stack
    finally:
        stack.process.kill()
        stack.process.communicate()
        subprocess.run([sys.executable, "-m", "infra.cli", "down", "--quiet"], cwd=tmp_path, check=True)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_SECONDS:g} s")
        time.sleep(0.2)


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def test_everything_starts_heals_and_stops(running: Running) -> None:
    status = running.status()
    assert status["running"]
    assert status["owner_pid"] == running.process.pid
    roles = sorted(entry["role"] for entry in status["roles"])
    assert roles == ["executor", "gateway", "kafka", "postgres", "worker", "worker"]
    assert httpx.get(f"{status['gateway_url']}/ready").status_code == 200
    for role in ("worker", "executor", "gateway"):
        for pid in running.pids(role):
            assert command_line(pid)[-4:-1] == ["-m", "infra.cli", role]

    victim = running.pids("worker")[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(running.pids("worker")) == 2)
    assert victim not in running.pids("worker")
    until(running.is_well)
    for n in range(8):  # On lanes of both workers.
        made = running.call("POST", "/workflows/apps", tenant_id="t1", code=f"app-{n}", name="App")
        assert made.status_code == 201, made.text

    started = running.identities()
    assert running.end(signal.SIGTERM) == 0
    assert not any(is_alive(identity) for identity in started)
    assert not running.status()["running"]


def test_a_second_up_is_refused_kill_9_does_not_block_the_next_and_down_stops(running: Running) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "infra.cli", "up", "--port", "0"],
        cwd=running.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert f"in use by process {running.process.pid}" in second.stderr

    made = running.call("POST", "/workflows/apps", tenant_id="t1", code="kept", name="Kept").json()
    killed = running.identities()
    running.end(signal.SIGKILL)
    again = Running(running.folder)
    try:
        assert not any(is_alive(identity) for identity in killed)
        assert again.call("GET", f"/workflows/apps/{made['id']}").json() == made
        until(again.is_well)
        made = again.call("POST", "/workflows/apps", tenant_id="t1", code="more", name="More")
        assert made.status_code == 201, made.text
        started = again.identities()
        subprocess.run([sys.executable, "-m", "infra.cli", "down"], cwd=running.folder, check=True)
        assert not any(is_alive(identity) for identity in started)
    finally:
        assert again.end(signal.SIGINT) == 0
