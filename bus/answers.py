"""Who awaits a command is told what became of it, whatever that was: nothing that an aggregate waits for can vanish."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from bus.batch import Batch
from bus.dead_letters import text
from bus.lanes import Lane
from bus.store import Incoming
from schemas.decider import Answer, Domain, Meta
from schemas.envelope import AnswerTo
from schemas.messages import PLATFORM_NAMESPACE, Command, derive

log = logging.getLogger("agent_platform.kernel")


class Answers:
    """Turns answers into commands of the domains that wait for them."""

    def __init__(self, domains: Iterable[Domain]) -> None:
        self._domains = {domain.name: domain for domain in domains}

    def command(self, answer_to: str, answer: Answer) -> Command | None:
        """What tells the awaiting aggregate; None for an address that is none of ours: a stranger wrote it."""
        try:
            address = AnswerTo.parse(answer_to)
            return self._domains[address.domain].answered(address, answer)
        except (LookupError, TypeError, ValueError) as error:
            log.warning("nobody awaits an answer at %r: %s", answer_to[:256], error)
            return None

    def refused(self, batch: Batch, lane: Lane, meta: Meta, answer: Answer) -> None:
        """Tell whoever awaits the command of `meta` that it came to nothing."""
        if meta.answer_to:
            told = self.command(meta.answer_to, answer)
            if told is not None:
                message_id = derive(meta.message_id, "answered")
                batch.send(lane, batch.command_record(lane, message_id, told, meta))

    def buried(self, batch: Batch, lane: Lane, record: Incoming, answer: Answer) -> None:
        """The same for a record that is a dead letter, perhaps before it was a command: what can be read counts."""
        found = {name: text(value) for name, value in record.headers if name.startswith("ce_")}
        answer_to = found.get("ce_answerto", "")
        if not answer_to or "ce_fingerprint" in found:
            return  # Nobody of ours sent it, or nobody waits.
        meta = Meta(
            derive(PLATFORM_NAMESPACE, f"{lane.id}:{record.offset}:{found.get('ce_id', '')}"),
            found.get("ce_tenantid", ""),
            "",
            batch.at,
            correlation_id=found.get("ce_correlationid", ""),
            answer_to=answer_to,
        )
        self.refused(batch, lane, meta, answer)
