"""Processes of ours: identified by pid and start, stopped exactly, never by name."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any

from infra.local.embedded.accounts import Account, who
from infra.local.embedded.failures import StackError

LOOPBACK = "127.0.0.1"
HERE = "/proc/self/cwd"
"""The folder that a process was started in, whatever its name is and whoever may pass the folders above it.

A server is told this instead of a path: there is nothing to escape in any of the files that name it, no limit of
length, and no folder that is not ours must be opened to the server's account; after a move it still holds.
"""
# Below the range from which the kernel takes ports for outgoing connections.
PORTS = range(20_000, 32_000)
POLL_SECONDS = 0.02
LOG_BYTES_MAX = 8 * 1024 * 1024

# Called with the pid of a server right after it was started.
Note = Callable[[int], None]


Say = Callable[[str], None]


def no_note(_pid: int) -> None:
    """Nobody keeps a record."""


def silence(_text: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for ever: a pid alone may be somebody else's tomorrow."""

    pid: int
    started: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def identify(pid: int) -> Identity | None:
    """The identity of a running process; None if there is none (a zombie counts as none)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return Identity(pid, f"{boot}:{fields[19].decode()}")


def is_alive(identity: Identity) -> bool:
    return identify(identity.pid) == identity


def signal_process(identity: Identity, number: int) -> bool:
    """Send a signal to exactly this process; False if it has gone."""
    if not is_alive(identity):
        return False
    try:
        os.kill(identity.pid, number)
    except ProcessLookupError:
        return False
    return True


def stop_processes(identities: Iterable[Identity], signals: Sequence[tuple[int, float]]) -> None:
    """Stop processes that need not be children of ours: each signal in turn, with its patience in seconds."""
    waiting = [identity for identity in identities if is_alive(identity)]
    for number, patience_seconds in signals:
        waiting = [identity for identity in waiting if signal_process(identity, number)]
        until = time.monotonic() + patience_seconds
        while waiting and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            waiting = [identity for identity in waiting if is_alive(identity)]
        if not waiting:
            return


async def stop_child(child: subprocess.Popen[bytes], signals: Sequence[tuple[int, float]]) -> int:
    """Stop a child of ours and reap it: each signal in turn, with its patience in seconds."""
    for number, patience_seconds in signals:
        if child.poll() is None:
            child.send_signal(number)
        if await wait_until(lambda: child.poll() is not None, patience_seconds):
            break
    return child.returncode if child.returncode is not None else child.wait(timeout=5)


class Patience:
    """Waits for a server to start, so long and no longer; says what for, and since when, every few seconds."""

    def __init__(self, name: str, seconds_max: float, say: Say, say_every_seconds: float = 10.0) -> None:
        self._name = name
        self._say = say
        self._say_every_seconds = say_every_seconds
        self._began = time.monotonic()
        self._until = self._began + seconds_max
        self._said_at = self._began

    @property
    def left_seconds(self) -> float:
        return max(0.0, self._until - time.monotonic())

    @property
    def spent(self) -> str:
        """How long it took, for the end of a sentence; nothing if that is not why it ended."""
        return "" if self.left_seconds else f" within {self._until - self._began:g} seconds"

    async def until(self, condition: Callable[[], bool], what_is_missing: str) -> bool:
        """True once the condition holds, false when no time is left."""
        while not condition():
            if not self.left_seconds:
                return False
            self.remark(what_is_missing)
            await asyncio.sleep(POLL_SECONDS)
        return True

    def remark(self, what_is_missing: str) -> None:
        """Say what is missing still, unless that was said just now."""
        now = time.monotonic()
        if now - self._said_at >= self._say_every_seconds:
            self._said_at = now
            self._say(f"{self._name} was started {now - self._began:.0f} s ago and {what_is_missing}")


async def wait_until(condition: Callable[[], bool], patience_seconds: float) -> bool:
    until = time.monotonic() + patience_seconds
    while not condition():
        if time.monotonic() >= until:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


def spawn(
    arguments: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    account: Account | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, so that Ctrl-C reaches only who stops it in order."""
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".old"))
    with open(log, "ab", opener=_private) as output:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=None if environment is None else dict(environment),
            start_new_session=True,
            **who(account),
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def run_tool(arguments: Sequence[str], *, what: str, account: Account | None = None, **more: Any) -> str:
    """Run a short program to its end and give its output; a failure is a StackError with its last line."""
    try:
        done = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
            **who(account),
            **more,
        )
    except subprocess.TimeoutExpired:
        raise StackError(f"{what} did not end within 120 seconds") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise StackError(f"{what} failed", lines[-1].strip())
    return str(done.stdout)


def log_tail(log: Path, marks: Sequence[str]) -> str:
    """The last line of a log that bears one of the marks, else its last line."""
    try:
        lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()[-400:] if line.strip()]
    except OSError:
        return ""
    telling = [line for line in lines if any(mark in line for mark in marks)]
    return (telling or lines or [""])[-1][:300]


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    """Whether somebody takes connections on this port of ours."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((LOOPBACK, port)) == 0


def free_port(taken: Iterable[int] = ()) -> int:
    """A port that nobody listens on now; chance keeps neighbours that start at the same time apart."""
    candidates = sorted(set(PORTS) - set(taken))
    for candidate in SystemRandom().sample(candidates, min(200, len(candidates))):
        if port_is_free(candidate):
            return candidate
    raise StackError("no free port found between 20000 and 31999 on 127.0.0.1", "stop something that listens there")


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file so that a reader sees the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


STOP_GENTLY: Sequence[tuple[int, float]] = ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0))
KILL: Sequence[tuple[int, float]] = ((signal.SIGKILL, 5.0),)
