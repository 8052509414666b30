"""The port of effects: what a step is given, what it answers, how it fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from schemas.messages import JsonObject
from schemas.workflow.node_types import NodeConfig


class StepCall(NamedTuple):
    """One attempt of one step. `node_run_id` is the idempotency key, the same for all attempts; `lease_token` rises
    with each lease, so an effect that keeps the highest one can refuse an executor that came back too late.

    `input`: the node's templated fields, filled in; everything else is in `config`. `timeout_seconds` 0: none.
    """

    node_run_id: str
    run_id: str
    tenant_id: str
    node_id: str
    attempt: int
    config: NodeConfig
    input: JsonObject
    timeout_seconds: float = 0.0
    traceparent: str = ""
    lease_token: int = 0


@dataclass(frozen=True, slots=True)
class StepResult:
    output: JsonObject
    text: str | None = None


class StepFailed(Exception):
    """An effect failed. `retryable` false: another attempt is pointless; `output` keeps what it answered."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = True,
        output: JsonObject | None = None,
        text: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable
        self.output = output
        self.text = text


Performer = Callable[[StepCall], Awaitable[StepResult]]
"""May raise StepFailed. Is cancelled at its timeout, and when its run is cancelled."""

Performers = Mapping[str, Performer]
"""By step kind: model, tool, code, retrieval."""
