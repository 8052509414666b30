"""A chaos run that cannot go on ends in findings: what was missing, and how every process was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from infra.chaos import autopsy
from infra.chaos.faults import Faults
from infra.chaos.load import Load, NotTaken
from infra.chaos.mix import MixReport, under_faults
from infra.chaos.scene import Scene
from infra.chaos.several import Several
from infra.local.embedded.state import DataFolder
from infra.settings import load_settings

UNREACHABLE = ExceptionGroup(
    "unhandled errors in a TaskGroup",
    [NotTaken("t1 a by http: {}"), ExceptionGroup("", [NotTaken("t2 b by ingress: {}"), ConnectionError("refused")])],
)


class LostLoad(Load):
    """A load that nobody takes."""

    async def run(self, runs: int, seconds: float, on_taken: Any = None) -> None:
        self.started = 7
        raise UNREACHABLE


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    """Of a stack whose worker has ended, whose Kafka is alive and not ready, and whose second worker never started."""
    folder = DataFolder(tmp_path)
    folder.acquire()
    (tmp_path / "log").mkdir()
    log = tmp_path / "log" / "kafka.log"
    log.write_text("starting\nrecovering log commands-0\n")
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as kafka,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker,
    ):
        folder.record_process("kafka", 0, kafka.pid, log)
        folder.record_process("kafka", 0, kafka.pid, log)
        folder.record_process("worker", 0, worker.pid, tmp_path / "log" / "worker-0.log")
        worker.kill()
        worker.wait()
        folder.record_waiting("kafka", "Kafka was started 40 s ago and does not listen yet")
        folder.record_waiting("worker-0", "ended (exit code 1)")
        folder.record_waiting("worker-1", "does not start: Too many open files")
        yield folder
        kafka.kill()
    folder.release()


def test_the_errors_of_a_group_are_named_and_counted() -> None:
    assert autopsy.errors(UNREACHABLE) == [
        "NotTaken, 2 times, the first: t1 a by http: {}",
        "ConnectionError, 1 times, the first: refused",
    ]


def test_every_process_is_described(folder: DataFolder) -> None:
    kafka, worker = folder.state.processes
    assert autopsy.processes(folder.path) == [
        f"kafka-0 (process {kafka.identity.pid}): alive, started again 1 times,"
        " waiting: Kafka was started 40 s ago and does not listen yet;"
        " last line of its log: recovering log commands-0",
        f"worker-0 (process {worker.identity.pid}): ended, started again 0 times,"
        " waiting: ended (exit code 1); last line of its log: none",
        "worker-1: does not start: Too many open files",
    ]


def test_where_nothing_runs_that_is_said(tmp_path: Path) -> None:
    assert autopsy.processes(tmp_path) == [f"nothing is known to run in {tmp_path}"]


async def test_a_load_that_nobody_takes_is_a_finding(folder: DataFolder) -> None:
    settings = load_settings(data_dir=folder.path)
    load = LostLoad("http://127.0.0.1:1", cast("Any", None), 1, settings)
    stage = Scene(settings, cast("Any", None), Faults(folder.path), load, lambda _: None)
    report = MixReport(seed=1)
    await under_faults(stage, report, seconds=0, runs_per_second=12)
    problems = report.conclusion.problems
    assert [each.partition(":")[0] for each in problems] == ["broken off"] * 2 + ["then"] * 3
    assert "NotTaken, 2 times" in problems[0]
    assert report.conclusion.offered == 7
    several = Several([report])
    assert several.problems
    assert "broken off" in several.table()
    assert several.document()["clean"] is False
