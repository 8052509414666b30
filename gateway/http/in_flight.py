"""Commands sent whose outcome is not known yet: who waits for each, and how many a tenant has."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.http.ports import Outcome
from gateway.http.problems import Problem

IN_FLIGHT_SECONDS_MAX = 60.0
"""A command whose reply got lost stops counting after this."""


@dataclass(slots=True)
class _Sent:
    tenant_id: str
    fingerprint: str
    at: float
    waiting: list[asyncio.Future[Outcome]] = field(default_factory=list)


class InFlight:
    """Owned by one event loop. `begin` before the command is sent, so that its reply cannot be missed."""

    def __init__(self, commands_per_tenant_max: int, now: Callable[[], float]) -> None:
        self._max = commands_per_tenant_max
        self._now = now
        self._sent: dict[str, _Sent] = {}
        self._of_tenant: dict[str, int] = {}
        self._order: deque[tuple[float, str]] = deque()

    def begin(self, tenant_id: str, command_id: str, fingerprint: str) -> asyncio.Future[Outcome]:
        """A future of the outcome.

        Raises Problem 422 if another request is in flight under this id, 429 if the tenant has too many in flight.
        """
        self._expire()
        sent = self._sent.get(command_id)
        if sent is not None and sent.fingerprint != fingerprint:
            detail = "this key is in use for another request"
            raise Problem(422, "idempotency_key_reused", detail, command_id=command_id)
        if sent is None:
            count = self._of_tenant.get(tenant_id, 0)
            if count >= self._max:
                raise Problem(
                    429,
                    "too_many_commands",
                    f"the tenant has {count} commands in flight",
                    headers={"retry-after": "1"},
                )
            self._of_tenant[tenant_id] = count + 1
            sent = self._sent[command_id] = _Sent(tenant_id, fingerprint, self._now())
            self._order.append((sent.at, command_id))
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        sent.waiting.append(future)
        return future

    def resolve(self, outcome: Outcome) -> None:
        """A reply has come: everybody who waits for that command gets it. Replies to nobody are dropped."""
        sent = self._remove(outcome.command_id)
        for future in sent.waiting if sent else ():
            if not future.done():
                future.set_result(outcome)

    def stop_waiting(self, command_id: str, future: asyncio.Future[Outcome]) -> None:
        """This request waits no longer; the command still counts until its reply comes."""
        sent = self._sent.get(command_id)
        if sent and future in sent.waiting:
            sent.waiting.remove(future)

    def count(self, tenant_id: str) -> int:
        return self._of_tenant.get(tenant_id, 0)

    def ended(self, command_id: str) -> None:
        """Its outcome was read elsewhere: it counts no longer. Whoever else waits finds it the same way."""
        sent = self._sent.get(command_id)
        if sent and not sent.waiting:
            self._remove(command_id)

    def _remove(self, command_id: str) -> _Sent | None:
        sent = self._sent.pop(command_id, None)
        if sent:
            left = self._of_tenant[sent.tenant_id] - 1
            if left:
                self._of_tenant[sent.tenant_id] = left
            else:
                del self._of_tenant[sent.tenant_id]
        return sent

    def _expire(self) -> None:
        horizon = self._now() - IN_FLIGHT_SECONDS_MAX
        while self._order and self._order[0][0] < horizon:
            at, command_id = self._order.popleft()
            sent = self._sent.get(command_id)
            if sent and sent.at == at:
                self._remove(command_id)
