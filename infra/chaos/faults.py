"""Faults to inject into a stack that `ap up` or a test keeps running; each names exactly what it hits."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from infra.chaos.places import What, wish
from infra.local.embedded.processes import Identity, is_alive, signal_process, write_atomically
from infra.local.embedded.state import Role, Started, read_state


class NobodyThere(Exception):
    """The process to hit is not running just now."""


@dataclass(frozen=True, slots=True)
class Victim:
    role: Role
    index: int
    identity: Identity

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"

    @property
    def owner_pattern(self) -> str:
        """SQL pattern of the owner names under which it holds lanes and leases."""
        return f"{self.role}-{self.pid}-%"


class Faults:
    """Faults on the stack of one data folder. Whoever keeps it running starts again what was killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hit: set[int] = set()
        """Processes that were killed or stood still."""

    def victim(self, role: Role, index: int = 0) -> Victim:
        """The running process of a role. Raises NobodyThere."""
        for started in self._processes():
            if (started.role, started.index) == (role, index) and is_alive(started.identity):
                return Victim(role, index, started.identity)
        raise NobodyThere(f"{role}-{index}")

    def kill(self, victim: Victim) -> None:
        """kill -9."""
        self._signal(victim, signal.SIGKILL)

    def stop(self, victim: Victim) -> None:
        """Stand still (SIGSTOP) until `go_on`."""
        self._signal(victim, signal.SIGSTOP)

    def stop_at(self, victim: Victim, place: str) -> None:
        """Ask it to stand still when it next comes to that place; `is_stopped` says when it has."""
        self._wish(victim, place, "stop")

    def kill_at(self, victim: Victim, place: str) -> None:
        """Ask it to die by kill -9 when it next comes to that place."""
        self._wish(victim, place, "kill")

    def asked_at(self, victim: Victim, place: str) -> bool:
        """Whether it has not come to the place yet."""
        return wish(self.folder, victim.pid, place).exists()

    def not_at(self, victim: Victim, place: str) -> bool:
        """Take back what was asked for and did not come about; says whether it had not."""
        asked = wish(self.folder, victim.pid, place)
        waiting = asked.exists()
        asked.unlink(missing_ok=True)
        return waiting

    def _wish(self, victim: Victim, place: str, what: What) -> None:
        self.hit.add(victim.pid)
        write_atomically(wish(self.folder, victim.pid, place), what.encode())

    def go_on(self, victim: Victim) -> None:
        self._signal(victim, signal.SIGCONT)

    def kill_kafka(self) -> None:
        self.kill(self.victim("kafka"))

    def cut_postgres(self) -> None:
        """Immediate shutdown, as after a power cut: the next start recovers from the log."""
        self._signal(self.victim("postgres"), signal.SIGQUIT)

    async def cut_connections(self, database: Any, random: Random, share: float = 0.5) -> int:
        """Terminate a share of the platform's sessions at random; says how many. `database`: asyncpg."""
        pids = await database.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'agent-platform%' ORDER BY pid"
        )
        hit = [row["pid"] for row in pids if random.random() < share]
        await database.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS u(pid)", hit)
        return len(hit)

    def _processes(self) -> tuple[Started, ...]:
        state = read_state(self.folder)
        return state.processes if state is not None else ()

    def _signal(self, victim: Victim, number: int) -> None:
        self.hit.add(victim.pid)
        if not signal_process(victim.identity, number):
            raise NobodyThere(victim.name)


def is_stopped(victim: Victim) -> bool:
    """Whether it stands still by SIGSTOP."""
    try:
        stat = Path(f"/proc/{victim.pid}/stat").read_bytes()
    except OSError:
        return False
    return stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] == b"T"
