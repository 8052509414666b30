"""A client of the gateway that costs little itself: one connection kept open, one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Self

REQUEST_SECONDS_MAX = 30.0


class Connection:
    """One kept connection. `headers` go with every request."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, headers: Mapping[str, str]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._head = "".join(f"{name}: {value}\r\n" for name, value in {"host": host, **headers}.items())

    @classmethod
    async def open(cls, host: str, port: int, headers: Mapping[str, str]) -> Self:
        reader, writer = await asyncio.open_connection(host, port)
        return cls(reader, writer, f"{host}:{port}", headers)

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """The status and the body of the answer. Raises OSError or TimeoutError."""
        about = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}{about}\r\n".encode() + body)
        async with asyncio.timeout(REQUEST_SECONDS_MAX):
            head = await self._reader.readuntil(b"\r\n\r\n")
            status, length = _parsed(head)
            return status, await self._reader.readexactly(length)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


def _parsed(head: bytes) -> tuple[int, int]:
    """Status and content length of an answer's head. Raises OSError if it says no length."""
    first, *lines = head.decode("latin-1").split("\r\n")
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            return int(first.split(" ")[1]), int(value)
    raise OSError(f"an answer without its length: {first}")
