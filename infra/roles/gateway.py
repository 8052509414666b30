"""The gateway: it serves HTTP."""

from __future__ import annotations

import logging
import os

from bus.producer import Producer
from gateway.http import server
from infra.roles.extras import Extras
from infra.roles.prepare import prepared
from infra.roles.process import stopping
from infra.roles.reachable import until_reachable
from infra.settings import Settings
from infra.telemetry.role import telemetry

log = logging.getLogger("agent_platform")


async def run_gateway(settings: Settings, extras: Extras | None = None) -> None:
    """Serve HTTP until SIGTERM or SIGINT."""
    producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix, timeout_seconds=5.0)
    async with stopping() as stop, telemetry(settings, "gateway", f"gateway-{os.getpid()}") as told:
        if not await until_reachable(settings, stop):
            return
        settings = await prepared(settings)  # A wrong number of partitions would send commands astray.
        try:
            await server.serve(
                settings,
                (extras or Extras()).bus(producer),
                database_url=settings.required_database_url,
                kafka_bootstrap=settings.required_kafka_bootstrap,
                stop=stop,
                started=lambda port: log.info("serving at http://%s:%d/gateway", settings.gateway_host, port),
                telemetry=told.requests,
            )
        finally:
            await producer.stop()
