"""What the supervisor keeps running: a process of a role, or an embedded server."""

import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from infra.local.embedded.processes import KILL, free_port, port_is_free, spawn, stop_child
from infra.local.embedded.state import DataFolder
from infra.settings import setting_name

RoleName = Literal["worker", "executor", "gateway"]


class Unit(Protocol):
    """Something that is kept running."""

    @property
    def name(self) -> str: ...
    @property
    def start(self) -> Callable[[], Awaitable[None]]: ...
    @property
    def exit_status(self) -> Callable[[], int | None]: ...


@dataclass(slots=True)
class RoleProcess:
    """One worker, executor or gateway: a process whose command line names its role."""

    role: RoleName
    index: int
    folder: DataFolder
    environment: Mapping[str, str]
    module: str = "infra.cli"
    metrics_port: int = 0
    child: subprocess.Popen[bytes] | None = None
    deaths: int = field(default=0)

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"

    @property
    def log(self) -> Path:
        return self.folder.path / "log" / f"{self.name}.log"

    async def start(self) -> None:
        if self.metrics_port and not port_is_free(self.metrics_port):
            self.metrics_port = free_port()
        environment = {**self.environment, setting_name("metrics_port"): str(self.metrics_port or "")}
        self.child = spawn([sys.executable, "-m", self.module, self.role], log=self.log, environment=environment)
        try:
            self.folder.record_process(self.role, self.index, self.child.pid, self.log, self.metrics_port)
        except OSError:
            await self.stop(KILL)  # What is not recorded, nobody would stop after our end.
            self.child = None
            raise

    def exit_status(self) -> int | None:
        return None if self.child is None else self.child.poll()

    async def stop(self, signals: Sequence[tuple[int, float]]) -> None:
        if self.child is not None:
            await stop_child(self.child, signals)


@dataclass(frozen=True, slots=True)
class Server:
    """Postgres or Kafka as something that is kept running."""

    name: str
    start: Callable[[], Awaitable[None]]
    exit_status: Callable[[], int | None]
