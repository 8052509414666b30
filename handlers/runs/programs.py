"""Compiled workflow versions: each is parsed once, outside of decisions, then kept while it is used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from handlers.runs.singles import PLATFORM_VERSION_ID, single_program
from projections.catalog import Version
from schemas.decider import Missing, Preparation
from schemas.messages import Rejected
from schemas.problems import Problem
from schemas.workflow.dsl import parse
from schemas.workflow.graph import Program
from schemas.workflow.node_types import NodeConfig

PROGRAMS_MAX = 256
PROGRAM_BYTES_MAX = 32 * 1024 * 1024
"""Of definitions as JSON, all programs in memory together; compiled they take several times as much."""
PROGRAMS_MIN = 16
"""So many stay however large they are: each lane may be about to use one."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A version's program, or why it has none. `size`: bytes of its definition as JSON."""

    program: Program | None
    problems: tuple[Problem, ...]
    size: int


class Programs:
    """The programs used last, bounded in number and in bytes.

    `extra_types`: node types beyond the language's own (the benchmark's no-op). Programs are kept, and others
    dropped, by `keep` only: whoever decides with one calls that between two batches.
    """

    def __init__(
        self,
        extra_types: Mapping[str, type[NodeConfig]] | None = None,
        *,
        entries_max: int = PROGRAMS_MAX,
        bytes_max: int = PROGRAM_BYTES_MAX,
        entries_min: int = PROGRAMS_MIN,
    ) -> None:
        self._extra_types = dict(extra_types or {})
        self._entries_max = entries_max
        self._entries_min = entries_min
        self._bytes_max = bytes_max
        self._compiled: OrderedDict[str, Compiled] = OrderedDict()
        self._own = single_program()
        self._bytes = 0

    def known(self, version_id: str) -> Program | None:
        """The program if it is in memory."""
        compiled = self._compiled.get(version_id)
        if compiled is None:
            return self._own if version_id == PLATFORM_VERSION_ID else None
        self._compiled.move_to_end(version_id)
        return compiled.program

    def of(self, version: Version) -> Program:
        """The version's program.

        Raises Missing if it must be compiled first, and Rejected `version_invalid` if its definition has errors.
        """
        program = self.known(version.id)
        if program is not None:
            return program
        compiled = self._compiled.get(version.id)
        if compiled is None:
            raise Missing(
                work=[
                    Preparation(
                        f"program {version.id}",
                        lambda: self.compile(version),
                        lambda made: self.keep(version.id, made),
                    )
                ]
            )
        raise _invalid(compiled)

    def compile(self, version: Version) -> Compiled:
        """Parse a version's definition: up to a second or so of CPU time. Safe in any thread."""
        program, problems = parse(version.spec, extra_types=self._extra_types)
        return Compiled(program, () if program is not None else tuple(problems), len(orjson.dumps(version.spec)))

    def keep(self, version_id: str, compiled: Compiled) -> None:
        """Have it in memory as the one used last; those used longest ago make room for it."""
        before = self._compiled.pop(version_id, None)
        self._bytes += compiled.size - (before.size if before is not None else 0)
        self._compiled[version_id] = compiled
        while len(self._compiled) > self._entries_max or (
            self._bytes > self._bytes_max and len(self._compiled) > self._entries_min
        ):
            _, dropped = self._compiled.popitem(last=False)
            self._bytes -= dropped.size


def _invalid(compiled: Compiled) -> Rejected:
    errors = tuple({"pointer": "/dsl_json" + p.pointer, "code": p.code, "detail": p.detail} for p in compiled.problems)
    return Rejected("version_invalid", "the workflow version has errors", status=422, errors=errors)
