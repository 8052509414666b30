"""The events of a run as the log has them, by page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from typing_extensions import TypedDict

from gateway.http.lists import ListOf
from infra.db import instant, read_as
from outbox.tables import EVENT
from projections.views import Moment, Uuid, View
from schemas.examples import Example
from schemas.messages import JsonObject


@dataclass(frozen=True)
class LoggedEvent:
    """A row of the log. `data`: the event as JSON."""

    aggregate_id: Uuid
    seq: int
    type: str
    tenant_id: str
    at: float
    actor: str
    correlation_id: str
    causation_id: str
    data: bytes


class RunEventView(TypedDict):
    """One event of a run: `seq` counts them from 1 without a gap, `data` is what is recorded."""

    run_id: Uuid
    seq: Annotated[int, Example(3)]
    type: Annotated[str, Example("runtime.node_completed")]
    at: Moment
    node_run_id: Uuid | None
    actor: Annotated[str | None, Example(None)]
    correlation_id: Annotated[str, Example("b1f6a0f2")]
    causation_id: Annotated[str, Example("6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e")]
    data: Annotated[JsonObject, Example({"node_run_id": "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e", "output": {}})]


def run_event_view(event: LoggedEvent) -> RunEventView:
    data: dict[str, Any] = orjson.loads(event.data)
    return {
        "run_id": event.aggregate_id,
        "seq": event.seq,
        "type": event.type,
        "at": instant(event.at),
        "node_run_id": data.get("node_run_id"),
        "actor": event.actor or None,
        "correlation_id": event.correlation_id,
        "causation_id": event.causation_id,
        "data": data,
    }


RUN_EVENT = View("event", read_as(LoggedEvent, EVENT, "aggregate_id"), RunEventView, run_event_view)
RUN_EVENT_LIST = ListOf(
    RUN_EVENT,
    ("run_id",),
    needs="run_id",
    order=("seq",),
    descending=False,
    renamed={"run_id": "aggregate_id"},
    after="after",
)
