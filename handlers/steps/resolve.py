"""Finding the node that a claimed step executes: by its run's version and its node's id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bus.postgres import DRIVER_ERRORS
from handlers.steps.leases import Claimed
from handlers.steps.port import StepFailed
from schemas.messages import Rejected
from schemas.workflow.graph import Node, Program

ProgramById = Callable[[str], Awaitable[Program]]
"""The program of a version. Raises LookupError if there is none, Rejected if it has errors, or a database error."""

UNRESOLVABLE = "step_unresolvable"


class NotKnownHere(Exception):
    """Another process may know the step, or this one later: it is to be given back."""


async def node_of(claimed: Claimed, program: ProgramById) -> Node:
    """The node of a claimed step. Raises NotKnownHere, or StepFailed for what nobody will ever resolve."""
    if claimed.problem:
        raise _unresolvable(f"its row cannot be read: {claimed.problem}")
    if claimed.run is None:
        raise _unresolvable("its run is gone")
    try:
        found = await program(claimed.run.version_id)
        return found.nodes[found.by_id[claimed.row.node_id]]
    except DRIVER_ERRORS as error:
        raise NotKnownHere(f"Postgres does not answer: {error}") from error
    except Rejected as refusal:
        if any(problem.get("code") == "unknown_node_type" for problem in refusal.errors):
            raise NotKnownHere("its version has a node type of another release") from refusal
        raise _unresolvable(f"its definition has errors: {refusal}") from refusal
    except Exception as error:
        raise _unresolvable(f"{type(error).__name__}: {error}") from error


def _unresolvable(why: str) -> StepFailed:
    return StepFailed(UNRESOLVABLE, f"the step cannot be resolved: {why}", retryable=False)
