"""All domains: one line each. What is made of every domain is derived from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from handlers import access, catalog, human
from handlers.runs.programs import Programs
from handlers.runs.progress import NODES_PER_MESSAGE_MAX
from handlers.runtime import Runtime
from infra.db import TableSpec
from schemas.decider import Domain, Evolve


@dataclass(frozen=True, slots=True)
class Installation:
    """What deciders are given by where they run. `step_kinds`: the steps that can be executed here.

    `check_tokens` and `share` are for tests.
    """

    programs: Programs = field(default_factory=Programs)
    step_kinds: frozenset[str] = frozenset({"code", "check"})
    check_tokens: bool = True
    share: int = NODES_PER_MESSAGE_MAX


def domains(installed: Installation) -> tuple[Domain, ...]:
    """Every domain, deciding as this installation can."""
    return (
        catalog.DOMAIN,
        Runtime(installed.programs, installed.step_kinds, installed.check_tokens, installed.share).domain(),
        access.DOMAIN,
        human.DOMAIN,
    )


DOMAINS = domains(Installation())
"""For all that is the same wherever they run: names, messages, folds, tables."""

PROJECTIONS: tuple[TableSpec, ...] = tuple(table for domain in DOMAINS for table in domain.tables)
"""Folded from events; a rebuild compares them."""

EVOLVE: Mapping[str, Evolve] = {
    event.model_fields["type"].default: domain.evolve for domain in DOMAINS for event in domain.events
}
"""The fold of each event, by its type's name."""
