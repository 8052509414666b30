"""One gateway: its connections, its background work, its HTTP server; started and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Callable, Iterator

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bus.tail import TopicTail
from gateway.audit import AuditLog
from gateway.http.app import create_app
from gateway.http.identity import Keys
from gateway.http.in_flight import InFlight
from gateway.http.ports import CommandBus, DatabaseUnavailable
from gateway.http.postgres import Postgres
from gateway.http.replies import Replies
from gateway.http.state import Gateway
from gateway.http.tail import Tail
from gateway.http.telemetry import RequestTelemetry, TelemetryMiddleware
from infra.settings import Settings
from schemas.topics import EVENTS

log = logging.getLogger("agent_platform.gateway")

_TARGET = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")

STOP_SECONDS_MAX = 35
"""Longer than the longest wait for an outcome that a request may ask for; no longer wait outlives the tail."""


class _Protocol(HttpToolsProtocol):
    """Keeps the host of an absolute request target (`GET http://host/path`), which uvicorn drops."""

    def on_headers_complete(self) -> None:
        match = _TARGET.match(self.url)
        if match is not None:
            if not match[1]:
                raise httptools.HttpParserInvalidURLError("a request target without a host")
            self.scope["target"] = match[1].decode("latin-1")  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()


class _Server(uvicorn.Server):
    """Signals are its caller's affair."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    settings: Settings,
    bus: CommandBus,
    *,
    database_url: str,
    kafka_bootstrap: str,
    stop: asyncio.Event,
    started: Callable[[int], None] = lambda port: None,
    telemetry: RequestTelemetry | None = None,
) -> None:
    """Serve until `stop` is set; then finish what is being answered, write the audits, disconnect.

    `bus` is started and stopped by the caller. `started` is told the port once requests are taken.
    `database_url` is postgresql://…, its user a member of the roles of gateway.http.postgres.
    """
    reads = await Postgres.connect(database_url, connections_max=settings.database_connections_max)
    now = asyncio.get_running_loop().time
    in_flight = InFlight(settings.commands_in_flight_max, now)
    replies = Replies(kafka_bootstrap, settings.topic_prefix, settings.gateway_instance, in_flight)
    gateway = Gateway(
        settings=settings,
        bus=bus,
        reads=reads,
        keys=Keys(reads, now, settings.requests_per_second_max),
        in_flight=in_flight,
        audit=AuditLog(reads, open_access=not settings.auth_required),
        tail=Tail(TopicTail(kafka_bootstrap, settings.topic_prefix + EVENTS)),
        kafka_answers=replies.answers,
    )
    app = create_app(gateway)
    listening = listen(settings.gateway_host, settings.gateway_port)
    auditing = asyncio.Event()
    try:
        server = http_server(app if telemetry is None else TelemetryMiddleware(app, telemetry))
        await replies.start()
        audits = asyncio.create_task(gateway.audit.run(auditing), name="audits")
        tailing = asyncio.create_task(gateway.tail.run(), name="tail")
        serving = asyncio.create_task(server.serve([listening]), name="http")
        try:
            await _until_started(server, serving)
            started(listening.getsockname()[1])
            await _first(serving, stop)
        finally:
            server.should_exit = True
            gateway.tail.close()
            await serving
            tailing.cancel()
            await asyncio.wait({tailing})
            auditing.set()
            await audits
            await _last_flush(gateway.audit)
    finally:
        listening.close()
        await replies.stop()
        await reads.close()


def http_server(app: ASGIApp) -> uvicorn.Server:
    """The server of an application; `serve` it on a socket of `listen`."""
    return _Server(
        uvicorn.Config(
            app,
            http=_Protocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_SECONDS_MAX,
            ws="none",
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises OSError if the address is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, or asyncio leaves Nagle's algorithm on for what it accepts: 40 ms an answer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host.strip("[]"), port))
        listening.listen(2048)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, error.strerror, f"port {port} of {host}") from None
    return listening


async def _until_started(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    while not server.started:
        if serving.done():
            await serving
            raise RuntimeError("the HTTP server stopped before it served")
        await asyncio.sleep(0.005)


async def _first(serving: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Return when `stop` is set, or raise when the server ends by itself."""
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
    if serving.done() and not stop.is_set():
        await serving
        raise RuntimeError("the HTTP server stopped by itself")


async def _last_flush(audit: AuditLog) -> None:
    try:
        await audit.flush()
    except DatabaseUnavailable as error:
        log.error("audit records could not be written before the stop: %s", error)
