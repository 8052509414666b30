"""The process of a peer: loads come in as lines of JSON, what they measured goes out as lines of JSON."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import BinaryIO

import orjson

from infra.bench.load import Load, One, closed_loop
from infra.telemetry import logs

NODES = 10


@dataclass(slots=True)
class Workload:
    """What an adapter is asked to do: `nodes` steps a run, on an empty database of its own.

    `runs`: how many it has done, all loads together; an adapter checks at its end that all are recorded.
    `server`: the process of a server that it has started, accounted for by itself.
    """

    database_url: str
    nodes: int
    requests: asyncio.StreamReader
    answers: BinaryIO
    runs: int = 0
    server: int | None = None

    async def loads(self) -> AsyncIterator[Load]:
        """The loads that are asked for, until nobody asks any more. Each must be put on something."""
        self._answer({"server": self.server})
        while line := await self.requests.readline():
            yield Load(**orjson.loads(line))

    async def put(self, load: Load, one: One) -> None:
        """Put one load on `one` and answer what it measured."""
        measured = await closed_loop(one, load)
        self.runs += measured.runs
        self._answer(measured.document())

    async def drive(self, one: One) -> None:
        """Put every load on the same `one`."""
        async for load in self.loads():
            await self.put(load, one)

    def check(self, ended: int, steps: int) -> None:
        """What the peer has recorded: runs ended well, and steps. Raises RuntimeError if that is not what was done."""
        if (ended, steps) != (self.runs, self.runs * self.nodes):
            raise RuntimeError(f"{ended} runs and {steps} steps are recorded after {self.runs} runs")

    def _answer(self, document: object) -> None:
        self.answers.write(orjson.dumps(document) + b"\n")
        self.answers.flush()


Adapter = Callable[[Workload], Awaitable[None]]


async def serve(name: str, database_url: str, answers: BinaryIO) -> None:
    adapter: Adapter = importlib.import_module(f"infra.bench.peers.{name}").run
    requests = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    await adapter(Workload(database_url, NODES, requests, answers))


def main() -> None:
    """Arguments: the peer's name and the address of its database."""
    import uvloop

    logs.start_at("warning", "text", f"peer-{sys.argv[1]}")
    # What a library prints must not come between the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        uvloop.run(serve(sys.argv[1], sys.argv[2], answers))


if __name__ == "__main__":
    main()
