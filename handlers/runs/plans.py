"""The plan of each kind of run."""

from __future__ import annotations

from typing import assert_never

from handlers.runs.graph_plan import GraphPlan
from handlers.runs.plan import Plan
from handlers.runs.single_plan import SinglePlan
from schemas.decider import Rows
from schemas.runtime import RunKind
from schemas.workflow.graph import Program


def plan_of(kind: RunKind, rows: Rows, program: Program, run_id: str) -> Plan:
    match kind:
        case "graph":
            return GraphPlan(rows, program, run_id)
        case "single":
            return SinglePlan(rows, program, run_id)
        case _:
            assert_never(kind)
