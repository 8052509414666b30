"""Runs of one step: what the platform has done for itself with leases, retries and time-outs like any other step.

They are runs of one version that is the platform's own, in which each kind of such a step is a node that can be begun
at; so attempts, cancelling, history and rebuild are those of every run.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from schemas.runtime import PLATFORM_VERSION_ID
from schemas.workflow.dsl import parse
from schemas.workflow.graph import Program
from schemas.workflow.node_types import NodeConfig

__all__ = ["PLATFORM_VERSION_ID", "Check", "single_program"]

CHECK_SECONDS_MAX: Final = 60.0


class Check(NodeConfig):
    """Say what is wrong with a version's definition."""

    kind = "effect"
    step_kind = "check"

    version_id: Annotated[str, "value"]


_NODES: Final[list[dict[str, Any]]] = [
    {
        "id": "check",
        "type": "check",
        "config": {
            "version_id": "{{inputs.version_id}}",
            "timeout_seconds": CHECK_SECONDS_MAX,
            "retry_policy": {"max_attempts": 3, "retry_delay_seconds": 1.0},
        },
    }
]


def single_program() -> Program:
    """Every kind of single step, as a node of its own."""
    program, problems = parse({"nodes": _NODES, "edges": []}, extra_types={"check": Check})
    assert program is not None, problems
    return program
