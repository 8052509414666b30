"""A peer under measurement: its adapter in a process of its own, on a database of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson

from infra.bench.load import Load, Measured
from infra.bench.platform import BenchFailed
from infra.bench.processes import Kinds
from infra.local.embedded import EmbeddedStack
from infra.local.embedded.processes import log_tail

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
LINE_BYTES_MAX = 64 * 1024 * 1024


class Peer:
    """A running peer, as a `System`."""

    def __init__(self, name: str, stack: EmbeddedStack, child: Process, log: Path) -> None:
        if child.stdin is None or child.stdout is None:
            raise ValueError("a peer is spoken to by its standard input and output")
        self.name = name
        self._stack = stack
        self._child = child
        self._requests = child.stdin
        self._answers = child.stdout
        self._log = log
        self._server: int | None = None

    async def ready(self) -> None:
        """Wait until it takes loads. Raises BenchFailed."""
        self._server = (await self.answer())["server"]

    def kinds(self) -> Kinds:
        """Client and worker are one process: it counts as the worker. Who has a server needs no Postgres."""
        if self._server is not None:
            return {"worker": [self._child.pid], "server": [self._server]}
        postgres = self._stack.postgres.child
        return {"worker": [self._child.pid], "postgres": [] if postgres is None else [postgres.pid]}

    async def load(self, load: Load) -> Measured:
        self._requests.write(orjson.dumps(load.document()) + b"\n")
        return Measured.of(await self.answer())

    async def answer(self) -> dict[str, Any]:
        line = await self._answers.readline()
        if not line:
            raise self._failure()
        answer: dict[str, Any] = orjson.loads(line)
        return answer

    async def end(self) -> None:
        """Ask for no more loads; the adapter checks what it has recorded. Raises BenchFailed."""
        self._requests.close()
        async with asyncio.timeout(STOP_SECONDS_MAX):
            status = await self._child.wait()
        if status:
            raise self._failure()

    def _failure(self) -> BenchFailed:
        return BenchFailed(f"{self.name} ended ({log_tail(self._log, ('Error', 'error'))})")


@contextlib.asynccontextmanager
async def started(name: str, stack: EmbeddedStack) -> AsyncIterator[Peer]:
    """A peer ready for loads. At the end of the block it has recorded every run, or BenchFailed is raised.

    Its database is gone then: Postgres would vacuum it on the account of whoever is measured next.
    """
    database = f"{name}_{uuid.uuid4().hex[:8]}"
    url = await stack.new_database(database)
    log = stack.folder.path / "log" / f"peer-{name}.log"
    with log.open("ab") as output:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "infra.bench.peers.process", name, url,
            stdin=PIPE, stdout=PIPE, stderr=output, limit=LINE_BYTES_MAX,
        )  # fmt: skip
    try:
        peer = Peer(name, stack, child, log)
        async with asyncio.timeout(START_SECONDS_MAX):
            await peer.ready()
        yield peer
        await peer.end()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        await stack.drop_database(database)
