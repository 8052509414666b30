"""`ap scale`: more and fewer processes while `ap up` runs, remembered for its next start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.cli.scale import ask_to_scale, parse_counts, report, warning
from infra.local.embedded import EmbeddedStack
from infra.local.embedded.failures import StackError
from infra.local.embedded.processes import is_alive
from infra.local.embedded.state import DataFolder, Scaled, Wish, read_wish, write_wish
from infra.operate import lanes as lane_operations
from infra.operate.topic_growth import grow
from infra.settings import SettingsError
from schemas.topics import INGRESS
from tests.infra.test_stack import Running, until
from tests.live import prepared


def test_counts_are_read_by_role() -> None:
    assert parse_counts(["worker=4", "executor=0"]) == {"worker": 4, "executor": 0}


def test_every_wrong_word_is_named() -> None:
    with pytest.raises(SettingsError) as refused:
        parse_counts(["workers=2", "worker=-1", "executor=many", "worker=999", "kafka", "gateway=2"])
    named = [problem.partition(":")[0] for problem in refused.value.problems]
    assert named == ["workers=2", "worker=-1", "executor=many", "worker=999", "kafka", "gateway=2"]
    with pytest.raises(SettingsError, match="given twice"):
        parse_counts(["worker=1", "worker=2"])


def test_what_was_done_is_told() -> None:
    done = Scaled("request", ("worker-1",), {"executor-0": -signal.SIGTERM, "executor-1": 1})
    assert report(done) == [
        "Started worker-1.", "Stopped executor-0.", "Stopped, not in order (exit code 1): executor-1.",
    ]  # fmt: skip
    assert report(Scaled("request")) == ["Nothing to do: so many run already."]


async def test_workers_that_would_own_nothing_are_told_of(services: EmbeddedStack) -> None:
    async with prepared(services, f"scale_{os.getpid()}") as settings:
        url = settings.required_database_url
        lanes = len(await lane_operations.standings(settings))
        await grow(settings, INGRESS, settings.ingress_partitions + 1)
        assert await warning(lanes + 1, url) == ""
        assert await warning(lanes + 2, url) == f"There are {lanes + 1} lanes: more workers than that stay without one."
        assert "decided" in await warning(0, url)
    assert await warning(2, url) == f'The lanes could not be counted: database "scale_{os.getpid()}" does not exist'


def test_where_nothing_runs_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="nothing is running"):
        ask_to_scale(tmp_path, {"worker": 2})
    assert read_wish(tmp_path) == Wish(), "and nothing is remembered"


def test_an_owner_that_is_no_supervisor_is_not_waited_for(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.acquire()
    try:
        with pytest.raises(StackError, match="cannot be scaled"):
            ask_to_scale(tmp_path, {"worker": 2})
    finally:
        folder.release()


def test_a_wish_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    write_wish(tmp_path, Wish({"worker": 3}, "request"))
    assert read_wish(tmp_path) == Wish({"worker": 3}, "request")
    for broken in (b"", b"[]", b'{"counts": {"worker": "many"}, "request": ""}', b"\xff"):
        (tmp_path / "roles.json").write_bytes(broken)
        assert read_wish(tmp_path) == Wish()


def _ap(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *words], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    stack = Running(tmp_path, "--workers", "1", "--executors", "1")
    try:
        yield stack
    finally:
        stack.process.kill()
        stack.process.communicate()
        _ap(tmp_path, "down", "--quiet")


@pytest.mark.services
@pytest.mark.platforms
def test_workers_come_and_go_and_the_next_start_knows(running: Running) -> None:
    first = running.pids("worker")
    done = _ap(running.folder, "scale", "worker=3", "executor=0")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["Started worker-1.", "Started worker-2.", "Stopped executor-0."],
    ), done.stderr
    assert running.pids("worker")[:1] == first, "who was there stays"
    assert running.pids("executor") == []
    until(lambda: len(running.status()["workers"]) == 3 and running.is_well())

    before = running.identities()
    done = _ap(running.folder, "scale", "worker=1")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {"Stopped worker-1.", "Stopped worker-2."}, "in order, by SIGTERM"
    assert running.pids("worker") == first
    assert sum(not is_alive(identity) for identity in before) == 2
    status = running.status()
    assert len(status["workers"]) == 1, "who left has told the group"
    until(running.is_well)
    assert all(not problem.startswith("worker-") for problem in running.status()["standing_still"])

    again = _ap(running.folder, "scale", "worker=1")
    assert again.stdout == "Nothing to do: so many run already.\n"
    assert _ap(running.folder, "scale", "worker=2").returncode == 0
    os.kill(running.pids("worker")[1], signal.SIGKILL)
    until(lambda: len(running.pids("worker")) == 2)  # What was added is kept running like the others.

    address = running.status()["gateway_url"]
    refused = _ap(running.folder, "topics", "grow", "commands", "30")
    assert refused.returncode == 2
    assert "these still run: " in refused.stderr
    made = running.call("POST", "/workflows/apps", tenant_id="t1", code="before", name="Before").json()
    grown = _ap(running.folder, "topics", "grow", "commands", "30", "--restart")
    assert grown.returncode == 0, grown.stderr
    assert "has 30 partitions, 12 before" in grown.stdout
    until(lambda: len(running.pids("worker")) == 2 and len(running.status()["lanes"]) == 30 + 4 and running.is_well())
    assert running.call("GET", f"/workflows/apps/{made['id']}").json() == made
    for number in range(8):
        answer = running.call("POST", "/workflows/apps", tenant_id="t1", code=f"grown-{number}", name="Grown")
        assert answer.status_code == 201, answer.text
    listed = _ap(running.folder, "topics", "list").stdout.splitlines()
    assert listed[0].split()[:2] == ["commands", "30"]

    assert running.end(signal.SIGTERM) == 0
    next_start = Running(running.folder)
    try:
        assert len(next_start.pids("worker")) == 2
        assert next_start.pids("executor") == []
        assert next_start.status()["gateway_url"] == address
    finally:
        assert next_start.end(signal.SIGTERM) == 0
