"""Serves `GET /metrics` on a port of its own: no credential, so no tenant, id or secret is ever in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from gateway.http.origins import Hosts, refusal
from infra.telemetry.metrics import Metrics

log = logging.getLogger("agent_platform.metrics")

REQUEST_SECONDS_MAX = 5.0
HEAD_BYTES_MAX = 16 * 1024
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Look = Callable[[], Awaitable[None]]


async def nothing() -> None:
    """There is nothing to look at."""


@contextlib.asynccontextmanager
async def serving(
    metrics: Metrics, host: str, port: int, look: Look = nothing, *, hosts: Hosts | None = None
) -> AsyncIterator[int]:
    """Serve on `port` (0: any free one) while the block lasts; gives the port. Raises OSError if it is taken.

    `look` is awaited before the metrics are read; if it fails, they show what it saw last. `hosts`: who may be asked
    for and whose pages may ask, as at the gateway.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_refusal(hosts, head) or await _answer(head, metrics, look))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("a request for metrics was not answered: %r", error)
        finally:
            writer.close()

    server = await asyncio.start_server(answer, host, port, limit=HEAD_BYTES_MAX, reuse_address=True)
    async with server:
        yield server.sockets[0].getsockname()[1]


def _refusal(hosts: Hosts | None, head: bytes) -> bytes | None:
    first, *lines = head.split(b"\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    target = first.split(b" ")[1:2]
    if target and not target[0].startswith(b"/"):
        return _response(b"400 Bad Request", b"the request target must be a path\n")
    problem = refusal(hosts, headers, http_version="1.0" if first.endswith(b"/1.0") else "1.1")
    if problem is None:
        return None
    return _response(b"%d %b" % (problem.status, problem.code.encode()), problem.detail.encode() + b"\n")


async def _answer(head: bytes, metrics: Metrics, look: Look) -> bytes:
    method, _, rest = head.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if path != b"/metrics":
        return _response(b"404 Not Found", b"metrics are at /metrics\n")
    if method not in (b"GET", b"HEAD"):
        return _response(b"405 Method Not Allowed", b"", b"Allow: GET, HEAD\r\n")
    try:
        await look()
    except Exception as error:  # Whatever it is: half of the metrics are worth more than none.
        log.warning("what waits could not be looked at: %r", error)
    return _response(b"200 OK", metrics.text(), body_shown=method == b"GET")


def _response(status: bytes, body: bytes, more: bytes = b"", *, body_shown: bool = True) -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n%b\r\n"
    return head % (status, CONTENT_TYPE, len(body), more) + (body if body_shown else b"")
