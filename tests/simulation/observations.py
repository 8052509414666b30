"""What is observed of a run, node run by node run, and when two observations agree."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Path = str  # A node id, or `<node>/<compensation>`.
PausedBy = Literal["self", "parent"]
Status = Literal["completed", "failed", "skipped", "cancelled"]

IDLE = ("skipped", "cancelled")


@dataclass(frozen=True)
class Success:
    output: Any
    text: str | None = None


@dataclass(frozen=True)
class Failure:
    """`output` and `text`: what it left all the same."""

    code: str
    retryable: bool = True
    output: Any = None
    text: str | None = None


@dataclass(frozen=True)
class Verdict:
    """How a person's task ended. `late`: so many seconds after its time, if that is told."""

    status: Literal["approved", "rejected", "completed", "expired", "cancelled"]
    response: Any = None
    by: str | None = None
    late: float | None = None


@dataclass(frozen=True)
class ChildEnd:
    """How a child run ended; `refused`: it never was."""

    status: Literal["completed", "failed", "compensated", "cancelled", "refused"]
    output: Any = None
    text: str | None = None
    code: str = ""


Answer = Success | Failure | Verdict | ChildEnd
Effects = Callable[[Path, str, int], Answer | None]
"""What is answered to an attempt; None: nothing, a task stays open or a child goes on until the end."""


@dataclass(frozen=True)
class Began:
    """An attempt was handed out: to executors, to a person or to a child run, which is given `inputs`."""

    path: Path
    iteration: str
    attempt: int
    on: Literal["step", "task", "run"] = "step"
    inputs: Any = None


@dataclass(frozen=True)
class Withheld:
    """A node run went back to wait for its turn."""

    path: Path
    iteration: str


@dataclass(frozen=True)
class Paused:
    by: PausedBy = "self"


@dataclass(frozen=True)
class Resumed:
    by: PausedBy = "self"


@dataclass(frozen=True)
class Ended:
    """A node run ended. `leased`: it answered while the run was failing or being cancelled.

    `by_hand`: somebody outside said so.
    """

    path: Path
    iteration: str
    status: Status
    attempt: int
    output: Any
    output_text: str | None
    error_code: str | None
    leased: bool = False
    by_hand: bool = False


@dataclass(frozen=True)
class Attempted:
    """An attempt failed and will be retried."""

    path: Path
    iteration: str
    attempt: int
    error_code: str


@dataclass(frozen=True)
class Claimed:
    """Somebody outside took a node run up."""

    path: Path
    iteration: str


@dataclass(frozen=True)
class Failing:
    pass


@dataclass(frozen=True)
class CancelRequested:
    compensate: bool = False
    force: bool = False


@dataclass(frozen=True)
class RunEnded:
    """The output and text are compared only if the run completed."""

    status: str
    output: Any
    output_text: str | None
    error_code: str | None


OfNodes = Ended | Attempted | Claimed | Began | Withheld
Observation = OfNodes | Failing | CancelRequested | Paused | Resumed | RunEnded


def same_json(one: Any, other: Any) -> bool:
    """Python holds True and 1 for equal, JSON does not."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def same(seen: Ended | Attempted, legal: Ended | Attempted, *, leased: bool = False) -> bool:
    """An output counts if the node run completed, an attempt if it was not withdrawn (0 if it never ran)."""
    if isinstance(seen, Attempted) or isinstance(legal, Attempted):
        return seen == legal
    names = ["path", "iteration", "status", "error_code"] + ["leased"] * leased
    if any(getattr(seen, name) != getattr(legal, name) for name in names):
        return False
    if seen.status in IDLE:
        return True
    if max(seen.attempt, 1) != legal.attempt:
        return False
    return seen.output_text == legal.output_text and same_json(seen.output, legal.output)


def same_end(seen: RunEnded, expected: RunEnded) -> bool:
    if seen.status != expected.status:
        return False
    if expected.status == "completed":
        same_text = seen.output_text == expected.output_text
        return same_text and seen.error_code is None and same_json(seen.output, expected.output)
    if expected.status == "cancelled":
        return seen.error_code in (None, "cancelled")
    return seen.error_code == expected.error_code or (seen.status == "compensated" and seen.error_code is None)
