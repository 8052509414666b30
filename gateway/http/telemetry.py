"""The port of telemetry for requests: one span and one measurement each, around everything else the gateway does."""

from __future__ import annotations

from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.call import Call


class RequestSpan(Protocol):
    """A request under way. `traceparent`: what it hands on; empty to leave that to the gateway."""

    @property
    def traceparent(self) -> str: ...

    def end(self, call: Call | None) -> None:
        """It is answered; `call` says how and for whom, None if it never got so far. Called once."""


class RequestTelemetry(Protocol):
    """Told from the loop that serves: a call must neither block nor raise."""

    def begin(self, method: str, traceparent: str) -> RequestSpan:
        """A request has come; `traceparent` as its client sent it, whatever it is worth."""


class TelemetryMiddleware:
    """The outermost layer: what its span is called goes on in place of the client's `traceparent`."""

    def __init__(self, app: ASGIApp, telemetry: RequestTelemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = [value for name, value in scope["headers"] if name == b"traceparent"]
        # Two of them are none (W3C trace context, section 3.2).
        span = self._telemetry.begin(scope["method"], sent[0].decode("latin-1") if len(sent) == 1 else "")
        if span.traceparent:
            others = [(name, value) for name, value in scope["headers"] if name != b"traceparent"]
            scope = {**scope, "headers": [*others, (b"traceparent", span.traceparent.encode())]}
        try:
            await self._app(scope, receive, send)
        finally:
            span.end(scope.get("call"))
