"""Which records count: by type, aggregate and tenant, as their headers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from infra.history.replay.places import ReplayRefused
from schemas import registry
from schemas.topics import EVENTS


@dataclass(frozen=True, slots=True)
class Selection:
    """Whatever is empty selects everything. `types` are globs, any of which may match."""

    types: Sequence[str] = ()
    aggregates: Sequence[str] = ()
    tenant: str = ""

    def takes(self, record: Any) -> bool:
        if not (self.types or self.aggregates or self.tenant):
            return True
        found = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
        if self.tenant and found.get("ce_tenantid") != self.tenant:
            return False
        if self.aggregates and found.get("ce_subject") not in self.aggregates:
            return False
        return not self.types or any(fnmatchcase(found.get("ce_type", ""), glob) for glob in self.types)


def types_of(topic: str, globs: Sequence[str]) -> list[str]:
    """The types of `events` or `commands` that any of the globs matches. Raises ReplayRefused if none does."""
    kind, names = ("event", registry.EVENTS) if topic == EVENTS else ("command", registry.COMMANDS)
    found = sorted({name for name in names for glob in globs if fnmatchcase(name, glob)})
    if not found:
        raise ReplayRefused(f"no {kind} is called {', '.join(globs)}; there are {', '.join(sorted(names))}")
    return found
