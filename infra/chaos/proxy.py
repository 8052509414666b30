"""A TCP proxy between the roles and a server: it can be slow, half-open or cut, while the server itself is well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

CHUNK_BYTES = 65_536


class Proxy:
    """Listens on `port` and passes everything on to the port that `target` says, as fast as `delay_seconds` lets it."""

    def __init__(self, port: int, target: Callable[[], int]) -> None:
        self.port = port
        self._target = target
        self.delay_seconds = 0.0
        """Every chunk, in both directions, is passed on so much later."""
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=CHUNK_BYTES)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def block(self) -> None:
        """Half-open: connections stay, and nothing comes through them any more."""
        self._open.clear()

    def unblock(self) -> None:
        self._open.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target())
        except OSError:
            writer.close()
            self._links.discard(task)
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, there_writer))
                group.create_task(self._pass(there_reader, writer))
        except* OSError:
            pass
        finally:
            self._links.discard(task)
            for each in (writer, there_writer):
                each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on until one side closes; then both are closed."""
        while chunk := await reader.read(CHUNK_BYTES):
            await self._open.wait()
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError("closed by one side")
