"""`GET /metrics` over HTTP: for Prometheus, and for who knocks at the wrong door."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.http.origins import hosts_of
from infra.settings import Settings
from infra.telemetry.metrics import Metrics
from infra.telemetry.serving import serving

HOST = "127.0.0.1"


async def test_metrics_are_read_after_a_look_at_what_waits() -> None:
    metrics = Metrics()
    looks = metrics.counter("looks", "Looks")

    async def look() -> None:
        looks.inc()

    async with serving(metrics, HOST, 0, look) as port, httpx.AsyncClient() as client:
        await client.get(f"http://{HOST}:{port}/metrics")
        answer = await client.get(f"http://{HOST}:{port}/metrics?name=all")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "agent_platform_looks_total 2.0" in answer.text
    assert "process_resident_memory_bytes" in answer.text


async def test_a_look_that_fails_costs_nobody_the_other_metrics() -> None:
    async def look() -> None:
        raise OSError("no connection")

    metrics = Metrics()
    metrics.counter("kept", "Kept").inc()
    async with serving(metrics, HOST, 0, look) as port, httpx.AsyncClient() as client:
        assert "agent_platform_kept_total 1.0" in (await client.get(f"http://{HOST}:{port}/metrics")).text


async def test_other_paths_and_methods_are_refused() -> None:
    async with serving(Metrics(), HOST, 0) as port, httpx.AsyncClient(base_url=f"http://{HOST}:{port}") as client:
        assert (await client.get("/")).status_code == 404
        assert (await client.get("/metrics/..")).status_code == 404
        assert (await client.post("/metrics")).status_code == 405
        head = await client.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")


async def test_whoever_sends_no_request_harms_nobody() -> None:
    async with serving(Metrics(), HOST, 0) as port, httpx.AsyncClient() as client:
        _, silent = await asyncio.open_connection(HOST, port)
        reader, endless = await asyncio.open_connection(HOST, port)
        endless.write(b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * 10_000)
        assert (await client.get(f"http://{HOST}:{port}/metrics")).status_code == 200
        assert await reader.read() == b"", "a head without end is hung up on"
        silent.close()
        endless.close()


async def test_a_port_that_is_taken_is_an_error_and_no_other_port() -> None:
    async with serving(Metrics(), HOST, 0) as port:
        with pytest.raises(OSError, match="address already in use"):
            async with serving(Metrics(), HOST, port):
                pass


async def test_on_a_loopback_address_pages_of_other_hosts_read_no_metrics() -> None:
    hosts = hosts_of(HOST, Settings())
    async with serving(Metrics(), HOST, 0, hosts=hosts) as port, httpx.AsyncClient() as client:
        url = f"http://{HOST}:{port}/metrics"
        assert (await client.get(url)).status_code == 200
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert (await client.get(url, headers=headers)).status_code == 403
