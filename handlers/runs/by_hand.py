"""What external workers may say of a node run: who holds it, for how long, and which result of it counts."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from projections.runtime import NodeRun, Run
from schemas import runtime as wire
from schemas.decider import Decision
from schemas.messages import JsonObject, Rejected
from schemas.workflow.graph import Node

DEFAULT_CODE = "set_by_hand"


def is_held_by_hand(row: NodeRun) -> bool:
    """An external worker has claimed it. What an executor holds is `queued` as far as events say."""
    return row.status == "running"


def refuse_other_holder(command: wire.SetNodeStatus, row: NodeRun) -> None:
    """Raise Rejected `lease_held` unless nobody holds the node run, or this external worker does.

    A result that names no worker is the holder's; a claim that names none is that of a worker without a key.
    """
    own = command.worker_key == row.leased_by or (command.status != "running" and not command.worker_key)
    if row.leased_by is None or (own and is_held_by_hand(row)):
        return
    raise Rejected("lease_held", f"{row.leased_by or 'a worker without a key'} executes this node run")


def claim(
    command: wire.SetNodeStatus, run: Run, row: NodeRun, node: Node, input: JsonObject | None, at: float
) -> Iterator[Decision]:
    """Lease a node run that nobody else holds, or renew its lease. Never beyond the node's own time-out.

    `input`: what the worker is to work on, unless the node run has it already.
    """
    if row.leased_by is None:
        if row.status == "pending" and row.wait_on != "timer":
            raise Rejected("node_run_waits", f"the node run waits for {row.wait_on} {row.wait_id}")
        yield wire.NodeStarted(
            node_run_id=row.id,
            worker=command.worker_key,
            lease_token=row.lease_token + 1,
            lease_seconds=command.lease_seconds,
            timeout_seconds=node.config.timeout_seconds or 0.0,
            input=input,
        )
        return
    if run.status == "cancelling" and "/" not in row.path:
        raise Rejected("run_unwinding", "the run is being cancelled: it waits for what this node run has come to")
    if row.deadline_at and row.deadline_at <= at:
        raise Rejected("lease_expired", f"the node's time-out of {row.timeout_seconds} s is over")
    yield wire.LeaseRenewed(node_run_id=row.id, lease_seconds=command.lease_seconds)


def refuse_other_result(command: wire.SetNodeStatus, row: NodeRun) -> None:
    """Of a node run that has ended: raise Rejected unless this is its result once more.

    A field that the command leaves out says nothing that could differ.
    """
    made_good = command.status == "failed" and row.status == "completed" and row.error is not None  # By on_error.
    if command.status != row.status and not made_good:
        raise Rejected("node_run_ended", f"the node run is {row.status}")
    error: JsonObject = row.error or {}
    said: list[tuple[object, object]] = [(command.output_text, row.output_text)]
    if not made_good:
        said.append((command.output, row.output))
    if command.status == "failed":
        said += [(command.error_code, error.get("code")), (command.error_message, error.get("message"))]
    if any(new is not None and not _same(new, old) for new, old in said):
        raise Rejected("result_differs", f"the node run is {row.status} with another result")


def _same(new: object, old: object) -> bool:
    option = orjson.OPT_SORT_KEYS
    return orjson.dumps(new, option=option) == orjson.dumps(old, option=option)
