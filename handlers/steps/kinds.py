"""What a process allows each kind of step by default: how long one may take, and how many are leased at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepKind:
    """`timeout_seconds`: of a node that names none, from its lease on. `at_once`: per process, of all tenants."""

    timeout_seconds: float
    at_once: int


CODE_AT_ONCE = 64
"""More than run at once, so that the sandbox never waits for a claim."""
CHECKS_AT_ONCE = 2
"""They are parsed in threads of this process, and share the one thread that asks the sandbox about code."""
CHECK_TIMEOUT_SECONDS = 60.0
MODEL_TIMEOUT_SECONDS = 600.0


def step_kinds(call_seconds_max: float, at_once_max: int, code_processes: int) -> Mapping[str, StepKind]:
    """By kind. `call_seconds_max`: the longest code or tool call."""
    # A code step also waits for those before it, each of which the sandbox ends in time.
    code_seconds = call_seconds_max * (CODE_AT_ONCE // code_processes + 1)
    return {
        "model": StepKind(MODEL_TIMEOUT_SECONDS, at_once_max),
        "tool": StepKind(call_seconds_max, at_once_max),
        "code": StepKind(code_seconds, min(at_once_max, CODE_AT_ONCE)),
        "retrieval": StepKind(call_seconds_max, at_once_max),
        "check": StepKind(CHECK_TIMEOUT_SECONDS, min(at_once_max, CHECKS_AT_ONCE)),
    }


def other_kind(at_once_max: int) -> StepKind:
    """Of a kind that an installation adds."""
    return StepKind(MODEL_TIMEOUT_SECONDS, at_once_max)
