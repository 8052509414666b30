"""Postgres and Kafka together on one data folder, started side by side and stopped with their owner."""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Self

from infra.local.embedded.failures import StackError
from infra.local.embedded.jars import Progress, default_cache, locked_jars
from infra.local.embedded.java import find_java
from infra.local.embedded.kafka import Kafka
from infra.local.embedded.postgres import Postgres
from infra.local.embedded.processes import Say, free_port, port_is_free, silence
from infra.local.embedded.state import DataFolder

DISK_MEGABYTES_MIN = 512
START_ATTEMPTS_MAX = 3


class EmbeddedStack:
    """Both servers, or one of them, on a data folder that this process owns from `start` to `stop`.

    For faults: `kafka.kill()` and `postgres.kill()` are kill -9, `postgres.stop(immediate=True)` is a power
    cut; `kafka.start()` and `postgres.start()` bring them back on the same ports with their data.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        with_postgres: bool = True,
        with_kafka: bool = True,
        full_jit: bool = False,
        heap_megabytes: int = 512,
        kafka_properties: Mapping[str, str] | None = None,
        cache_dir: Path | None = None,
        progress: Progress | None = None,
        waiting: Say = silence,
    ) -> None:
        self.folder = DataFolder(data_dir)
        logs = self.folder.path / "log"
        self._waiting = waiting
        self.postgres = Postgres(
            self.folder.path / "postgres", logs / "postgres.log", self._note_postgres, self._postgres_waits
        )
        self.kafka = Kafka(
            self.folder.path / "kafka", logs / "kafka.log", self._note_kafka,
            full_jit=full_jit, heap_megabytes=heap_megabytes, properties=kafka_properties, waiting=self._kafka_waits,
        )  # fmt: skip
        self._with_postgres = with_postgres
        self._with_kafka = with_kafka
        self._cache = cache_dir or default_cache()
        self._progress = progress
        self._halted = False

    @property
    def database_url(self) -> str:
        return self.postgres.url

    @property
    def kafka_bootstrap(self) -> str:
        return self.kafka.bootstrap

    async def start(self) -> None:
        """Take the data folder and start the servers. Raises StackError; nothing runs then."""
        self._halted = False
        await asyncio.to_thread(self.folder.acquire)
        try:
            self._check_disk()
            starts = []
            if self._with_postgres:
                starts.append(self._start_postgres())
            if self._with_kafka:
                starts.append(self._start_kafka())
            for failure in await asyncio.gather(*starts, return_exceptions=True):
                if failure is not None:
                    raise failure
        except BaseException:
            await self.stop()
            raise
        self.folder.record(
            waiting={},
            database_url=self.database_url if self._with_postgres else None,
            kafka_bootstrap=self.kafka_bootstrap if self._with_kafka else None,
        )

    async def stop(self) -> None:
        """Stop the servers and give the folder back. May be called again."""
        self._halted = True
        await asyncio.gather(self.kafka.stop(), self.postgres.stop())
        await asyncio.to_thread(self.folder.release)

    async def new_database(self, name: str) -> str:
        """Make an empty database and give its address."""
        await self._execute(f'CREATE DATABASE "{name}"')
        return self.postgres.url_of(name)

    async def drop_database(self, name: str) -> None:
        """Drop what `new_database` has made; its sessions end."""
        await self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    async def _execute(self, sql: str) -> None:
        import asyncpg

        connection = await asyncpg.connect(self.database_url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def _start_postgres(self) -> None:
        async def start(ports: Mapping[str, int]) -> None:
            await self.postgres.start(ports["postgres"])

        await self._start_on_free_ports(("postgres",), start)

    async def _start_kafka(self) -> None:
        java, jars = await asyncio.gather(
            asyncio.to_thread(find_java), asyncio.to_thread(locked_jars, self._cache, self._fetched)
        )

        async def start(ports: Mapping[str, int]) -> None:
            await asyncio.to_thread(self.kafka.prepare, java, jars, ports["kafka"], ports["kafka_controller"])
            await self.kafka.start()

        await self._start_on_free_ports(("kafka", "kafka_controller"), start)

    async def _start_on_free_ports(
        self, names: tuple[str, ...], start: Callable[[Mapping[str, int]], Awaitable[None]]
    ) -> None:
        """Start on the remembered ports, on others if somebody has taken one meanwhile."""
        for attempt in range(1, START_ATTEMPTS_MAX + 1):
            ports = self.folder.remembered_ports()
            for name in names:
                if name not in ports or not port_is_free(ports[name]):
                    ports[name] = free_port(ports.values())
            self.folder.remember_ports(ports)
            try:
                return await start(ports)
            except StackError:
                if attempt == START_ATTEMPTS_MAX or all(port_is_free(ports[name]) for name in names):
                    raise

    def _fetched(self, done: int, total: int) -> None:
        if self._halted:
            raise StackError("stopped while fetching")
        if self._progress is not None:
            self._progress(done, total)

    def _note_postgres(self, pid: int) -> None:
        self.folder.record_process("postgres", 0, pid, self.postgres.log)

    def _note_kafka(self, pid: int) -> None:
        self.folder.record_process("kafka", 0, pid, self.kafka.log)

    def _postgres_waits(self, text: str) -> None:
        self._waits("postgres", text)

    def _kafka_waits(self, text: str) -> None:
        self._waits("kafka", text)

    def _waits(self, name: str, text: str) -> None:
        """Said and kept as long as there is room for it."""
        with contextlib.suppress(OSError):
            self._waiting(text)
            self.folder.record_waiting(name, text)

    def _check_disk(self) -> None:
        free_megabytes = shutil.disk_usage(self.folder.path).free // 1024**2
        if free_megabytes < DISK_MEGABYTES_MIN:
            raise StackError(
                f"{self.folder.path} has {free_megabytes} MB left and {DISK_MEGABYTES_MIN} are needed",
                "make room, or choose another folder with --data",
            )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
