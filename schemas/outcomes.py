"""Commands of the platform about outcomes that come later: they belong to no domain."""

from __future__ import annotations

from typing import ClassVar, Literal

from schemas.messages import Command, Id


class ExpireOutcome(Command):
    """The time of a deferred outcome is over: it fails, unless it has come meanwhile."""

    type: Literal["outcome.expire"] = "outcome.expire"
    compare_and_set: ClassVar[bool] = True
    target_id: Id
    """The aggregate of the deferred command."""
    command_id: Id

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.target_id


COMMANDS: tuple[type[Command], ...] = (ExpireOutcome,)
