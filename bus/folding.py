"""One decision, folded as it is made: events and what they change, commands, answers, outcomes of earlier commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from bus.rows import View
from schemas.decider import After, Answer, Awaited, Deferred, Domain, Meta, React, Recorded, Reply, Settled
from schemas.messages import Command, Event, Rejected
from schemas.topics import MESSAGE_BYTES_MAX

Reactions = Mapping[type[Event], Sequence[tuple[str, React]]]
"""Who takes an event further, each under a name of its own."""


class Folded:
    """What a decision came to. `seq`: that of the aggregate's last event. `commands` have names, unique among them."""

    __slots__ = ("bodies", "commands", "deferred", "recorded", "seq", "settled")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.recorded: list[Recorded[Event]] = []
        self.bodies: list[bytes] = []
        self.commands: list[tuple[str, Command | After | Awaited]] = []
        self.settled: list[Settled] = []
        self.deferred: Deferred | None = None

    def fold(
        self,
        domain: Domain,
        command: Command,
        view: View,
        meta: Meta,
        reactions: Reactions,
        answered: Callable[[str, Answer], Command | None],
    ) -> None:
        """Decide, and fold each event into `view` before the decider goes on. Raises as deciders do."""
        ordinal = 0
        for item in domain.decide[type(command)](command, view, meta):
            if item.is_event:
                event = cast(Event, item)
                self._record(domain, event, view, meta)
                reacting = reactions.get(type(event))
                if reacting is not None:
                    head = view.get(domain.head, meta.aggregate_id)
                    self.commands.extend(_reactions(reacting, event, head, meta, len(self.recorded)))
            elif isinstance(item, Reply):
                told = answered(item.answer_to, item.answer)
                if told is not None:
                    self.commands.append((f"reply:{ordinal}", told))
                    ordinal += 1
            elif isinstance(item, Settled):
                self.settled.append(item)
            elif isinstance(item, Deferred):
                self.deferred = item
            else:
                self.commands.append((f"decide:{ordinal}", cast("Command | After | Awaited", item)))
                ordinal += 1

    def _record(self, domain: Domain, event: Event, view: View, meta: Meta) -> None:
        self.seq += 1
        recorded = Recorded(
            event, meta.aggregate_id, self.seq, meta.at, meta.tenant_id, meta.lane, meta.actor,
            meta.correlation_id, meta.message_id, meta.traceparent,
        )  # fmt: skip
        changed = view.changed
        for row in domain.evolve(view, recorded):
            changed[type(row), row.id] = row
        body = event.encode()
        if len(body) > MESSAGE_BYTES_MAX:
            raise Rejected("message_too_large", f"{event.type} is over 4 MiB", status=413)
        self.recorded.append(recorded)
        self.bodies.append(body)


def _reactions(
    reactions: Sequence[tuple[str, React]], event: Event, head: Any, meta: Meta, place: int
) -> Iterator[tuple[str, Command]]:
    """What an event makes others do, each under a name of its own in this decision. `place`: the event's in it."""
    for name, react in reactions:
        for ordinal, command in enumerate(react(event, head, meta)):
            yield f"{name}:{place}:{ordinal}", command
