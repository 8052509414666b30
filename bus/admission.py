"""Admission: what was handled before is dropped, and its stored outcome told again."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from bus.batch import Accepted, Batch
from bus.store import Outcome, Unit
from schemas.messages import Rejected


def must_admit(accepted: Accepted) -> bool:
    """Whether a repeat of it must be found by its id; else its own decision finds it."""
    return accepted.external or not accepted.command.compare_and_set


async def admit(batch: Batch, unit: Unit, pending: list[Accepted], at: float, *, inbox_on: bool) -> list[Accepted]:
    """Drop what was handled before; who sent it from outside is told the stored outcome again."""
    admitting = [each for each in pending if must_admit(each)]
    if not admitting:
        return pending
    outcomes = [
        Outcome(
            e.envelope.id,
            e.envelope.tenant_id,
            e.envelope.type,
            e.envelope.fingerprint,
            "pending",
            b"",
            at,
            e.envelope.reply_partition,
        )
        for e in _first(admitting, external=True)
    ]
    # A re-driven command from outside has an outcome already: the inbox tells the repeats of the re-drive.
    redriven = [e for e in _first(admitting, external=True) if e.envelope.redrive]
    first = [*_first(admitting, external=False), *redriven]
    inbox = [(e.envelope.id, e.envelope.redrive, at) for e in first]
    admitted = await unit.admit(inbox, outcomes)
    if not inbox_on:
        return pending
    seen: dict[tuple[str, int], Accepted] = {}
    fresh = []
    for each in pending:
        key = (each.envelope.id, each.envelope.redrive)
        stored = admitted.outcomes.get(each.envelope.id) if each.external else None
        repeat = key in admitted.repeats
        if must_admit(each) and key in seen:
            # Twice in this batch: the first one answers, unless this is another request under the same id.
            if each.external and each.envelope.fingerprint != seen[key].envelope.fingerprint:
                _refuse(batch, each)
            continue
        if stored is not None and (repeat or not each.envelope.redrive or stored.status != "failed"):
            _answer_again(batch, each, stored)
        elif not repeat:
            seen[key] = each
            fresh.append(each)
    return fresh


def _answer_again(batch: Batch, accepted: Accepted, stored: Outcome) -> None:
    if stored.fingerprint == accepted.envelope.fingerprint:
        if stored.status == "pending":
            return  # It comes later; whoever sent this again hears it then.
        batch.reply(accepted, stored.status, stored.body)
    else:
        _refuse(batch, accepted)


def _refuse(batch: Batch, accepted: Accepted) -> None:
    refusal = Rejected("idempotency_key_reused", "this key was used for another request", status=422)
    batch.reply(accepted, "rejected", orjson.dumps(refusal.problem()))


def _first(admitting: Sequence[Accepted], *, external: bool) -> list[Accepted]:
    """One record per id: the same id twice in one statement is an error in Postgres."""
    return list(
        {(e.envelope.id, e.envelope.redrive): e for e in reversed(admitting) if e.external is external}.values()
    )
