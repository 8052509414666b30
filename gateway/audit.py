"""Request audits: kept in memory for a moment, written in batches off the request path, listed per tenant."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import deque

from gateway.http.call import Call
from gateway.http.identity import PUBLIC_TENANT
from gateway.http.ports import AuditRecord, DatabaseUnavailable, Reads

log = logging.getLogger("agent_platform.audit")

FLUSH_SECONDS = 0.5
BATCH_RECORDS_MAX = 1_000
BACKLOG_RECORDS_MAX = 100_000
"""While Postgres is down, records wait up to this many; then the oldest are given up, and the log says so."""


NOBODY = "-"
"""The tenant of requests that bore no valid credential."""


class AuditLog:
    """`note` never waits. Whoever owns it runs `run` and, after the last request, awaits `flush`."""

    def __init__(self, reads: Reads, *, open_access: bool) -> None:
        self._reads = reads
        self._fallback_tenant = PUBLIC_TENANT if open_access else NOBODY
        self._waiting: deque[AuditRecord] = deque()
        self._writing = asyncio.Lock()
        self.given_up = 0

    def note(self, call: Call) -> None:
        """Record a finished request; probes and documents outside /gateway are not audited."""
        if not call.path.startswith("/gateway"):
            return
        if len(self._waiting) >= BACKLOG_RECORDS_MAX:
            self._waiting.popleft()
            self.given_up += 1
        duration_ms = call.milliseconds()
        self._waiting.append(
            AuditRecord(
                id=str(uuid.uuid4()),
                tenant_id=call.tenant_id or self._fallback_tenant,
                api_key_id=call.api_key_id,
                user_id=call.user_id,
                method=call.method,
                path=call.path,
                route=call.route,
                status_code=call.status,
                duration_ms=round(duration_ms, 3),
                request_id=call.request_id,
                created_at=time.time(),
            )
        )

    async def flush(self) -> None:
        """Write what waits now. Raises DatabaseUnavailable, then nothing is lost."""
        async with self._writing:
            left = len(self._waiting)
            while left > 0 and self._waiting:
                size = min(left, len(self._waiting), BATCH_RECORDS_MAX)
                left -= size
                batch = [self._waiting.popleft() for _ in range(size)]
                try:
                    await self._reads.write_audit(batch)
                except BaseException:
                    self._waiting.extendleft(reversed(batch))
                    raise

    async def run(self, stop: asyncio.Event) -> None:
        """Flush every FLUSH_SECONDS until `stop`; the last flush is the owner's."""
        reported = 0
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await stop.wait()
            try:
                await self.flush()
            except DatabaseUnavailable as error:
                log.warning("%d audit records wait for Postgres: %s", len(self._waiting), error)
            if self.given_up > reported:
                log.error("%d audit records were given up: Postgres was away too long", self.given_up)
                reported = self.given_up
