"""The book of effects: what really happened outside the engine, one line each, whatever the engine believes."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from handlers.steps.port import StepCall

EFFECTS = "effects.log"


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect as its executor began it. `key`: its idempotency key; `at`: seconds since 1970."""

    key: str
    attempt: int
    token: int
    tenant_id: str
    run_id: str
    node_id: str
    owner: str
    pid: int
    at: float


class Book:
    """Appends effects to the file that all processes of a stack share; each line is one write."""

    def __init__(self, folder: Path) -> None:
        self._log = os.open(folder / EFFECTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, call: StepCall, owner: str) -> None:
        """`owner`: to whom the step's input says it belongs."""
        effect = Effect(
            call.node_run_id, call.attempt, call.lease_token, call.tenant_id, call.run_id, call.node_id,
            owner or "-", os.getpid(), time.time(),
        )  # fmt: skip
        os.write(self._log, (" ".join(map(str, astuple(effect))) + "\n").encode())

    def close(self) -> None:
        os.close(self._log)


def effects(folder: Path) -> list[Effect]:
    """Everything that happened, in order."""
    log = folder / EFFECTS
    found = []
    for line in log.read_text().splitlines() if log.exists() else ():
        key, attempt, token, tenant, run_id, node_id, owner, pid, at = line.split(" ")
        found.append(Effect(key, int(attempt), int(token), tenant, run_id, node_id, owner, int(pid), float(at)))
    return found


def by_key(happened: Sequence[Effect]) -> Mapping[str, list[Effect]]:
    found: dict[str, list[Effect]] = defaultdict(list)
    for effect in happened:
        found[effect.key].append(effect)
    return found


@dataclass(frozen=True, slots=True)
class Lease:
    """When a lease token became the latest of its node run, and whether it follows one that ran out."""

    at: float
    requeued: bool


CLOCK_SECONDS = 1.0
"""By how much a worker's idea of database time may be off."""


def problems(
    happened: Sequence[Effect], leases: Mapping[tuple[str, int], Lease], lease_seconds: float
) -> Iterator[tuple[str, str]]:
    """I8: what is wrong with the repeats, by kind. `leases`: by node run and token, as the event log tells."""
    keys: dict[tuple[str, str], set[str]] = defaultdict(set)
    for effect in happened:
        keys[effect.run_id, effect.node_id].add(effect.key)
    for (run_id, node_id), different in keys.items():
        if len(different) > 1:
            yield "repeat under another key", f"{run_id} {node_id}: {sorted(different)}"
    for key, repeats in by_key(happened).items():
        highest = 0
        for effect in repeats:
            where = f"{key} token {effect.token} by {effect.pid}"
            if effect.token == highest:
                yield "two effects under one lease", where
            elif effect.token < highest:
                yield "effect under an old lease", f"{where}, {highest} was out already"
            highest = max(highest, effect.token)
            lease, before = leases.get((key, effect.token)), leases.get((key, effect.token - 1))
            if lease is None:
                yield "effect without a lease", where
            elif lease.requeued and before is not None and lease.at < before.at + lease_seconds - CLOCK_SECONDS:
                yield "repeat before the lease ran out", f"{where}: {lease.at - before.at:.1f} s after the one before"
