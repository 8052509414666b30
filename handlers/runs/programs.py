"""Compiled workflow versions: each is parsed once, then kept while it is used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from projections.catalog import Version
from schemas.messages import Rejected
from schemas.workflow.dsl import parse
from schemas.workflow.graph import Program
from schemas.workflow.node_types import NodeConfig

PROGRAMS_MAX = 256


class Programs:
    """`extra_types`: node types beyond the language's own (the benchmark's no-op)."""

    def __init__(self, extra_types: Mapping[str, type[NodeConfig]] | None = None) -> None:
        self._extra_types = dict(extra_types or {})
        self._programs: OrderedDict[str, Program] = OrderedDict()

    def of(self, version: Version) -> Program:
        """The version's program. Raises Rejected `version_invalid` if its definition has errors."""
        program = self._programs.get(version.id)
        if program is None:
            found, problems = parse(version.spec, extra_types=self._extra_types)
            if found is None:
                raise Rejected(
                    "version_invalid",
                    "the workflow version has errors",
                    status=422,
                    errors=tuple(
                        {"pointer": "/dsl_json" + p.pointer, "code": p.code, "detail": p.detail} for p in problems
                    ),
                )
            program = self._programs[version.id] = found
            if len(self._programs) > PROGRAMS_MAX:
                self._programs.popitem(last=False)
        return program

    def known(self, version_id: str) -> Program | None:
        return self._programs.get(version_id)
