"""Tombstones: what is known about an aggregate that retention has removed, and how commands for it are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.db import TableSpec, Uuid, instant, table
from schemas.messages import Command, Rejected


@dataclass(frozen=True)
class Tombstone:
    """`kind`: the table of its head. `status`: what it had ended as. `last_seq`: how many events it had.

    What stays for ever of an aggregate that retention has removed: its id is never used again. On the hot path it is
    read by one trigger, once for each batch that makes runs (infra.database.schema), and where a command finds no head.
    """

    id: Uuid
    tenant_id: str
    kind: str
    status: str
    last_seq: int
    ended_at: float
    removed_at: float


TOMBSTONES: TableSpec = table(Tombstone, "tombstone")


def expired(gone: Tombstone) -> Rejected:
    """What its own tenant is told: it was there, and is not kept any more."""
    shown: dict[str, Any] = {
        "ended_status": gone.status, "ended_at": instant(gone.ended_at), "removed_at": instant(gone.removed_at),
    }  # fmt: skip
    detail = f"this {_called(gone)} ended as {gone.status} and was removed by retention"
    return Rejected(f"{gone.kind}_expired", detail, status=410, **shown)


def refusal(gone: Tombstone, command: Command, tenant_id: str) -> Rejected:
    """Of a command that comes too late. Another tenant learns no more than that the id is not to be had."""
    if command.creates:
        return Rejected("id_taken", "this id was used before; choose another one")
    if gone.tenant_id != tenant_id:
        return Rejected(f"{gone.kind}_not_found", f"there is no such {_called(gone)}", status=404)
    return expired(gone)


def _called(gone: Tombstone) -> str:
    return gone.kind.replace("_", " ")
