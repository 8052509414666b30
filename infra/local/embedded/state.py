"""The data folder of a stack: who owns it, which processes it started, and how leftovers are stopped."""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from infra.local.embedded.failures import StackError
from infra.local.embedded.processes import Identity, identify, is_alive, stop_processes, write_atomically

Role = Literal["postgres", "kafka", "worker", "executor", "gateway"]
SERVERS: Sequence[Role] = ("postgres", "kafka")

# Postgres takes SIGTERM as "wait until the last client has gone".
LEFTOVER_ROLE = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
LEFTOVER_KAFKA = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))
LEFTOVER_POSTGRES = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


@dataclass(frozen=True, slots=True)
class Started:
    """One process that the owner of a data folder started."""

    role: Role
    index: int
    identity: Identity
    log: str
    restarts: int = 0
    metrics_port: int = 0
    """Where it serves its metrics; 0: nowhere."""

    def as_json(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "index": self.index,
            "pid": self.identity.pid,
            "started": self.identity.started,
            "log": self.log,
            "restarts": self.restarts,
            "metrics_port": self.metrics_port,
        }


@dataclass(frozen=True, slots=True)
class Scaled:
    """What became of the last request to scale. `stopped`: exit code by name; negative: the signal that it took."""

    request: str = ""
    started: tuple[str, ...] = ()
    stopped: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"request": self.request, "started": list(self.started), "stopped": self.stopped}


@dataclass(frozen=True, slots=True)
class State:
    """What DATA/state.json says. `scaled` is there once the roles can be scaled."""

    owner: Identity
    since: str
    processes: tuple[Started, ...] = ()
    database_url: str | None = None
    kafka_bootstrap: str | None = None
    gateway_url: str | None = None
    ports: dict[str, int] = field(default_factory=dict)
    scaled: Scaled | None = None
    waiting: dict[str, str] = field(default_factory=dict)
    """By name, why a process is not running just now, or is not ready yet."""

    def as_json(self) -> dict[str, Any]:
        return {
            "owner": self.owner.as_json(),
            "since": self.since,
            "database_url": self.database_url,
            "kafka_bootstrap": self.kafka_bootstrap,
            "gateway_url": self.gateway_url,
            "ports": self.ports,
            "processes": [process.as_json() for process in self.processes],
            "scaled": None if self.scaled is None else self.scaled.as_json(),
            "waiting": self.waiting,
        }

    @property
    def is_running(self) -> bool:
        return is_alive(self.owner)


def read_state(data: Path) -> State | None:
    """The state of a data folder; None if there is none that can be read."""
    try:
        raw = orjson.loads((data / "state.json").read_bytes())
        return State(
            owner=Identity(**raw["owner"]),
            since=raw["since"],
            database_url=raw["database_url"],
            kafka_bootstrap=raw["kafka_bootstrap"],
            gateway_url=raw["gateway_url"],
            ports=dict(raw["ports"]),
            processes=tuple(_started(p) for p in raw["processes"]),
            scaled=_scaled(raw.get("scaled")),
            waiting=dict(raw.get("waiting", {})),
        )
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _started(raw: dict[str, Any]) -> Started:
    identity = Identity(raw["pid"], raw["started"])
    return Started(raw["role"], raw["index"], identity, raw["log"], raw["restarts"], raw.get("metrics_port", 0))


def _scaled(raw: dict[str, Any] | None) -> Scaled | None:
    return None if raw is None else Scaled(raw["request"], tuple(raw["started"]), dict(raw["stopped"]))


@dataclass(frozen=True, slots=True)
class Wish:
    """How many processes of each role somebody wants: DATA/roles.json. `request` names who asked last.

    `paused`: none at all for the moment, gateways included; the next start does not know of that.
    """

    counts: dict[str, int] = field(default_factory=dict)
    request: str = ""
    paused: bool = False


def read_wish(data: Path) -> Wish:
    """The last wish; an empty one if there is none that can be read."""
    try:
        raw = orjson.loads((data / "roles.json").read_bytes())
        counts = {str(role): int(count) for role, count in raw["counts"].items() if int(count) >= 0}
        return Wish(counts, str(raw["request"]), raw.get("paused") is True)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return Wish()


def write_wish(data: Path, wish: Wish) -> None:
    document = {"counts": wish.counts, "request": wish.request, "paused": wish.paused}
    write_atomically(data / "roles.json", orjson.dumps(document, option=orjson.OPT_INDENT_2))


def stop_leftovers(state: State) -> list[Started]:
    """Stop what a former owner left running, the roles before their servers; says what it was."""
    left = [process for process in state.processes if is_alive(process.identity)]
    by_role = {role: [p.identity for p in left if p.role == role] for role in SERVERS}
    stop_processes([p.identity for p in left if p.role not in SERVERS], LEFTOVER_ROLE)
    stop_processes(by_role["kafka"], LEFTOVER_KAFKA)
    stop_processes(by_role["postgres"], LEFTOVER_POSTGRES)
    return left


def in_use(path: Path, owner: str) -> StackError:
    return StackError(
        f"{path} is in use by process {owner}",
        f"stop it with `ap down --data {shlex.quote(str(path))}`, or choose another folder with --data",
    )


class DataFolder:
    """A data folder held by this process from `acquire` to `release`; others are refused meanwhile.

    Every process that is started is recorded at once. A guard process waits for the end of this one, however
    it comes, and stops what is recorded then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        owner = identify(os.getpid())
        assert owner is not None  # We are running.
        self._state = State(owner, datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def state(self) -> State:
        return self._state

    def acquire(self) -> None:
        """Take the folder and stop what a former owner left. Raises StackError if somebody holds it."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise in_use(self.path, owner) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock
        former = read_state(self.path)
        if former is not None:
            stop_leftovers(former)
        self.record()
        self._start_guard()

    def release(self) -> None:
        """Give the folder back. Nothing that is still recorded survives this."""
        if self._lock is None:
            return
        stop_leftovers(self._state)
        (self.path / "state.json").unlink(missing_ok=True)
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait(timeout=30)
            self._guard = None
        os.ftruncate(self._lock, 0)
        os.close(self._lock)
        self._lock = None

    def record(self, **changes: Any) -> None:
        """Change fields of the state and write it."""
        self._state = replace(self._state, **changes)
        write_atomically(self.path / "state.json", orjson.dumps(self._state.as_json(), option=orjson.OPT_INDENT_2))

    def record_process(self, role: Role, index: int, pid: int, log: Path, metrics_port: int = 0) -> None:
        """Record a process just started; it takes the place of the former one of its role and index."""
        identity = identify(pid)
        others = [p for p in self._state.processes if (p.role, p.index) != (role, index)]
        former = [p for p in self._state.processes if (p.role, p.index) == (role, index)]
        restarts = former[0].restarts + 1 if former else 0
        if identity is not None:
            others.append(Started(role, index, identity, str(log), restarts, metrics_port))
        self.record(processes=tuple(sorted(others, key=lambda p: (p.role, p.index))))

    def record_waiting(self, name: str, reason: str) -> None:
        """Say why a process is not running or not ready; with no reason: it is."""
        if self._state.waiting.get(name, "") != reason:
            others = {each: why for each, why in self._state.waiting.items() if each != name}
            self.record(waiting=others | ({name: reason} if reason else {}))

    def forget_process(self, role: Role, index: int) -> None:
        """It has ended for good."""
        self.record(processes=tuple(p for p in self._state.processes if (p.role, p.index) != (role, index)))

    def remembered_ports(self) -> dict[str, int]:
        try:
            return {
                str(name): int(port) for name, port in orjson.loads((self.path / "ports.json").read_bytes()).items()
            }
        except (FileNotFoundError, ValueError, AttributeError):
            return {}

    def remember_ports(self, ports: dict[str, int]) -> None:
        write_atomically(self.path / "ports.json", orjson.dumps(ports, option=orjson.OPT_INDENT_2))
        self.record(ports=ports)

    def _start_guard(self) -> None:
        owner = self._state.owner
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "infra.local.embedded.guard", str(self.path), str(owner.pid), owner.started],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
