"""All domains: by them the commands of a batch become events, rows and messages of that batch. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from bus.answers import Answers
from bus.batch import Accepted, Batch
from bus.costs import Costs
from bus.deciding import BatchSpent, DecidingTime, TooLong
from bus.preparations import Unprepared
from bus.reception import Reception
from bus.rows import View
from infra.db import TableSpec
from schemas.decider import Answer, Domain, Key, Meta, Missing, React, Settled
from schemas.messages import Event, Rejected, derive
from schemas.outcomes import ExpireOutcome

log = logging.getLogger("agent_platform.kernel")


class Domains:
    """Asks a command's domain. What it refuses is an outcome; what it fails at is a dead letter.

    `broken`: what could not be prepared, by key, and why. `heads`: the type of the header row of a command's
    aggregate; `ended`: whether such a row's aggregate has come to its end; `reactions`: who takes an event further.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        specs: Mapping[type[Any], TableSpec],
        reception: Reception,
        costs: Costs,
        answers: Answers,
        deciding: DecidingTime,
        broken: dict[str, str],
        owner: str,
    ) -> None:
        self._by_command = {command: domain for domain in domains for command in domain.decide}
        self.heads = {command: domain.head for command, domain in self._by_command.items()}
        self.ended = {domain.head: domain.ended for domain in domains}
        self._facts = {command: facts for domain in domains for command, facts in domain.facts.items()}
        self.reactions: dict[type[Event], list[tuple[str, React]]] = {}
        for domain in domains:
            for event, found in domain.react.items():
                named = [(f"{domain.name}.{react.__name__}", react) for react in found]
                self.reactions.setdefault(event, []).extend(named)
        self._answers = answers
        self._specs = specs
        self._reception = reception
        self._costs = costs
        self._deciding = deciding
        self._broken = broken
        self._owner = owner

    def facts_of(self, accepted: Sequence[Accepted]) -> list[Key]:
        """What the decisions will ask of other aggregates."""
        return [
            key
            for each in accepted
            if (facts := self._facts.get(type(each.command))) is not None
            for key in facts(each.command)
        ]

    def decide_all(self, batch: Batch, accepted: Sequence[Accepted]) -> None:
        """Decide in order. Raises Missing at the first that lacks rows, Unprepared, or BatchSpent."""
        self._deciding.begin_batch()
        last = len(accepted) - 1
        for index, each in enumerate(accepted):
            try:
                self._in_time(batch, each, last=index == last)
            except Missing as lack:
                if lack.work:
                    raise Unprepared([(each.source, lack.work)]) from None
                raise

    def fold(self, batch: Batch, pending: list[Accepted]) -> tuple[list[Accepted], list[tuple[Accepted, Missing]]]:
        """Decide in order. What lacks rows waits, and everything after it of the same aggregate.

        Raises Unprepared or BatchSpent.
        """
        self._deciding.begin_batch()
        waiting: list[Accepted] = []
        missing: list[tuple[Accepted, Missing]] = []
        blocked: set[str] = set()
        last = len(pending) - 1
        for index, accepted in enumerate(pending):
            if accepted.aggregate_id in blocked:
                waiting.append(accepted)
                continue
            try:
                self._in_time(batch, accepted, last=index == last)
            except Missing as lack:
                blocked.add(accepted.aggregate_id)
                waiting.append(accepted)
                missing.append((accepted, lack))
        unprepared = [(accepted.source, lack.work) for accepted, lack in missing if lack.work]
        if unprepared:
            raise Unprepared(unprepared)
        return waiting, missing

    def _in_time(self, batch: Batch, accepted: Accepted, *, last: bool) -> None:
        """Decide one command, watched."""
        deciding = self._deciding
        try:
            deciding.begin()
            self.decide(batch, accepted)
            deciding.end()
            if deciding.spent() and not last:
                raise BatchSpent(accepted.source, "deciding the batch took too long", alone=False)
        except TooLong as slow:
            raise BatchSpent(accepted.source, str(slow), alone=True) from None
        finally:
            deciding.end()

    def decide(self, batch: Batch, accepted: Accepted) -> None:
        """Decide one command. Raises Missing: an optimistic batch is to be undone then, another asked again."""
        envelope, command = accepted.envelope, accepted.command
        if isinstance(command, ExpireOutcome):
            batch.settle(accepted, _overdue(command), batch.at)
            return
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
            envelope.answer_to,
        )
        aggregate = accepted.lane.aggregate(accepted.aggregate_id)
        if batch.optimistic and command.creates and not aggregate.rows:
            aggregate.whole = True  # Taken for granted: its first row is inserted, or refused.
            batch.touched.add((accepted.lane.id, accepted.aggregate_id))
        view = View(aggregate, batch.facts, self._specs, batch.held, self._owner, meta.tenant_id)
        if batch.condemned is not None:
            self._defect(batch, accepted, domain, meta, *batch.condemned)
            return
        try:
            self._costs.learn(command.type, batch.decide(accepted, domain, meta, view))
        except Missing as lack:
            broken = next((each.key for each in lack.work if each.key in self._broken), None)
            if broken is None:
                raise
            self._defect(batch, accepted, domain, meta, "internal_error", f"{broken}: {self._broken.pop(broken)}")
        except TooLong:
            raise
        except Rejected as refusal:
            if accepted.external:
                batch.conclude(accepted, "rejected", orjson.dumps(refusal.problem()), meta.at)
                return
            log.info("%s was refused: %s", command.type, refusal)
            self._answers.refused(batch, accepted.lane, meta, Answer(code=refusal.code, detail=refusal.detail))
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


def _overdue(command: ExpireOutcome) -> Settled:
    problem = Rejected("deadline_exceeded", "what this command began did not end in time", status=504).problem()
    return Settled(command.command_id, "failed", problem)
