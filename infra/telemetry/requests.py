"""Metrics of the gateway's requests: counted and timed by route template, never by tenant or path."""

from __future__ import annotations

from time import perf_counter

from gateway.http.call import Call
from infra.telemetry.metrics import SHORT_SECONDS, Metrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
"""A method or path that no route has: clients may invent any number of them."""


class RequestMetrics:
    """`RequestTelemetry` as metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter("http_requests", "Requests answered", ["method", "route", "status"])
        self._seconds = metrics.histogram(
            "http_request_seconds", "Time until a request was answered", SHORT_SECONDS, ["method", "route"]
        )
        self._in_flight = metrics.gauge("http_requests_in_flight", "Requests being answered")

    def begin(self, method: str, traceparent: str) -> _Timed:
        return _Timed(self, method if method in METHODS else OTHER)

    def began(self) -> None:
        self._in_flight.inc()

    def ended(self, method: str, call: Call | None, seconds: float) -> None:
        self._in_flight.dec()
        route = OTHER if call is None else call.route or OTHER
        self._requests.labels(method, route, "500" if call is None else str(call.status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class _Timed:
    traceparent = ""

    def __init__(self, metrics: RequestMetrics, method: str) -> None:
        self._metrics = metrics
        self._method = method
        self._began = perf_counter()
        metrics.began()

    def end(self, call: Call | None) -> None:
        self._metrics.ended(self._method, call, perf_counter() - self._began)
