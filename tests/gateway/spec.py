"""given(events).when(command).then(events): a decider's rules, one aggregate at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from schemas.decider import Decision, Domain, Meta, Recorded
from schemas.messages import Command, Event, Rejected
from tests.gateway.world import Tables

AGGREGATE = "00000000-0000-4000-8000-000000000001"
MESSAGE = "00000000-0000-4000-8000-00000000000f"


@dataclass
class Spec:
    """What one domain does. `tenant_id` owns the aggregate."""

    domain: Domain
    tenant_id: str = "t1"

    def given(self, *events: Event) -> Given:
        tables = Tables(aggregate_id=AGGREGATE, tenant_id=self.tenant_id)
        for seq, event in enumerate(events, 1):
            _fold(self.domain, tables, event, seq, self.tenant_id)
        return Given(self, tables, len(events))


@dataclass
class Given:
    spec: Spec
    tables: Tables
    seq: int

    def when(
        self,
        command: Command,
        *,
        tenant_id: str | None = None,
        actor: str = "",
        at: float = 100.0,
        answer_to: str = "",
    ) -> When:
        tenant_id = tenant_id or self.spec.tenant_id
        meta = Meta(MESSAGE, tenant_id, AGGREGATE, at=at, actor=actor, answer_to=answer_to)
        decide = self.spec.domain.decide[type(command)]
        self.tables.tenant_id = meta.tenant_id

        def run() -> list[Decision]:
            head = self.tables.rows.get((self.spec.domain.head, AGGREGATE))
            if command.creates and head is not None and head.tenant_id != meta.tenant_id:
                raise Rejected("id_taken", "as the kernel refuses it")
            decisions = []
            for decision in decide(command, self.tables, meta):
                decisions.append(decision)
                if isinstance(decision, Event):
                    self.seq += 1
                    _fold(self.spec.domain, self.tables, decision, self.seq, meta.tenant_id)
            return decisions

        return When(run, lambda: self.spec.domain.answer(command, self.tables, meta), self, command)


@dataclass
class When:
    run: Callable[[], list[Decision]]
    answer: Callable[[], Mapping[str, Any]]
    given: Given
    command: Command

    def then(self, *events: Event) -> Mapping[str, Any]:
        """Exactly these events follow. Gives what the sender is answered."""
        assert self.run() == list(events)
        return self.answer()

    def rejected(self, code: str, status: int = 409) -> Rejected:
        with pytest.raises(Rejected) as refusal:
            self.run()
        assert (refusal.value.code, refusal.value.status) == (code, status)
        return refusal.value


def _fold(domain: Domain, tables: Tables, event: Event, seq: int, tenant_id: str) -> None:
    recorded = Recorded(event, AGGREGATE, seq, float(seq), tenant_id, lane=0)
    rows: list[Any] = list(domain.evolve(tables, recorded))
    for row in rows:
        tables.rows[type(row), row.id] = row
