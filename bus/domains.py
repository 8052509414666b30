"""All domains: by them the commands of a batch become events, rows and messages of that batch. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from bus.batch import Accepted, Batch
from bus.costs import Costs
from bus.reception import Reception
from bus.rows import View
from infra.db import TableSpec
from schemas.decider import Domain, Meta, Missing, React
from schemas.messages import Event, Rejected, derive

log = logging.getLogger("agent_platform.kernel")


class Domains:
    """Asks a command's domain. What it refuses is an outcome; what it fails at is a dead letter.

    `heads`: the type of the header row of a command's aggregate; `ended`: whether such a row's aggregate has come to
    its end; `reactions`: who takes an event further.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        specs: Mapping[type[Any], TableSpec],
        reception: Reception,
        costs: Costs,
        owner: str,
    ) -> None:
        self._by_command = {command: domain for domain in domains for command in domain.decide}
        self.heads = {command: domain.head for command, domain in self._by_command.items()}
        self.ended = {domain.head: domain.ended for domain in domains}
        self.reactions: dict[type[Event], tuple[React, ...]] = {}
        for domain in domains:
            for event, found in domain.react.items():
                self.reactions[event] = (*self.reactions.get(event, ()), *found)
        self._specs = specs
        self._reception = reception
        self._costs = costs
        self._owner = owner

    def fold(self, batch: Batch, pending: list[Accepted]) -> tuple[list[Accepted], list[tuple[Accepted, Missing]]]:
        """Decide in order. What lacks rows waits, and everything after it of the same aggregate."""
        waiting: list[Accepted] = []
        missing: list[tuple[Accepted, Missing]] = []
        blocked: set[str] = set()
        for accepted in pending:
            if accepted.aggregate_id in blocked:
                waiting.append(accepted)
                continue
            try:
                self.decide(batch, accepted)
            except Missing as lack:
                blocked.add(accepted.aggregate_id)
                waiting.append(accepted)
                missing.append((accepted, lack))
        return waiting, missing

    def decide(self, batch: Batch, accepted: Accepted) -> None:
        """Decide one command. Raises Missing: an optimistic batch is to be undone then, another asked again."""
        envelope, command = accepted.envelope, accepted.command
        domain = self._by_command[type(command)]
        meta = Meta(
            envelope.id,
            envelope.tenant_id,
            accepted.aggregate_id,
            batch.at,
            envelope.actor,
            envelope.correlation_id,
            envelope.traceparent,
            accepted.lane.id,
        )
        aggregate = accepted.lane.aggregate(accepted.aggregate_id)
        if batch.optimistic and command.creates and not aggregate.rows:
            aggregate.whole = True  # Taken for granted: its first row is inserted, or refused.
            batch.touched.add((accepted.lane.id, accepted.aggregate_id))
        view = View(aggregate, batch.facts, self._specs, batch.held, self._owner)
        if batch.poison is not None:
            self._defect(batch, accepted, domain, meta, "poison", batch.poison)
            return
        try:
            self._costs.learn(command.type, batch.decide(accepted, domain, meta, view))
        except Missing:
            raise
        except Rejected as refusal:
            if accepted.external:
                batch.conclude(accepted, "rejected", orjson.dumps(refusal.problem()), meta.at)
            else:
                log.info("%s was refused: %s", command.type, refusal)
        except Exception as defect:
            log.exception("deciding %s failed", command.type)
            self._defect(batch, accepted, domain, meta, "internal_error", f"{type(defect).__name__}: {defect}")

    def _defect(self, batch: Batch, accepted: Accepted, domain: Domain, meta: Meta, code: str, detail: str) -> None:
        """A bug met this command, or Postgres refuses it: a dead letter, and nobody waits for it for ever."""
        self._reception.bury(batch, accepted.lane, accepted.record, code, detail)
        if accepted.external:
            problem = Rejected("internal_error", "the command could not be handled", status=500).problem()
            batch.conclude(accepted, "failed", orjson.dumps(problem), meta.at)
            return
        told = domain.failed(accepted.command, "internal_error", detail)
        if told is not None:
            message_id = derive(meta.message_id, f"failed:{told.type}:0")
            batch.send(accepted.lane, batch.command_record(accepted.lane, message_id, told, meta))
