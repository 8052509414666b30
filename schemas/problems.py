"""What is wrong with a workflow: problems with JSON pointers, and the check that a value is storable JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from typing_extensions import TypedDict

from schemas.examples import Example

PROBLEMS_MAX: Final = 1_000
NAMED_MAX: Final = 10
DETAIL_MAX: Final = 500
POINTER_MAX: Final = 500
"""Of characters: one long key above many flaws would otherwise be repeated by each of them."""
DEPTH_MAX: Final = 64
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**64 - 1

WARNINGS: Final = frozenset(
    {
        "allow_loop_unused",
        "max_iterations_unused",
        "compensation_has_edges",
        "compensation_nested",
        "default_output_unused",
        "join_n_unused",
        "on_timeout_unused",
        "tool_unresolved",
        "unordered_reference",
        "unset_state",
    }
)


class FieldError(TypedDict):
    """What is wrong with one value of a request; `pointer` is an RFC 6901 JSON pointer."""

    pointer: Annotated[str, Example("/dsl_json/nodes/1/config")]
    code: Annotated[str, Example("missing")]
    detail: Annotated[str, Example("config needs a template")]


class SpecProblem(FieldError):
    """What is wrong with a definition; only an error forbids publishing."""

    severity: Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """`pointer` is an RFC 6901 JSON pointer into the DSL; only an error forbids publishing."""

    pointer: str
    code: str
    detail: str
    severity: Literal["error", "warning"] = "error"


def pointer_of(*steps: str | int) -> str:
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in steps)


def summary(errors: Sequence[FieldError]) -> str:
    """One line: the first NAMED_MAX, and how many more there are."""
    named = [f"{error['pointer'] or '/'}: {error['detail']}" for error in errors[:NAMED_MAX]]
    return "; ".join(named) + (f"; and {len(errors) - NAMED_MAX} more" if len(errors) > NAMED_MAX else "")


def printable(text: str) -> str:
    """The text without what cannot be stored or sent."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\u0000")


@dataclass(slots=True)
class Problems:
    """Collects at most PROBLEMS_MAX problems, one per place and code."""

    found: list[Problem] = field(default_factory=list)
    scrubbed: set[str] = field(default_factory=set)  # Places whose value was already found unusable.
    _known: set[tuple[str, str]] = field(default_factory=set)

    def add(self, pointer: str, code: str, detail: str) -> None:
        pointer = printable(pointer[:POINTER_MAX])
        if self.full() or pointer in self.scrubbed or (pointer, code) in self._known:
            return
        self._known.add((pointer, code))
        if len(self.found) == PROBLEMS_MAX - 1:
            pointer, code, detail = "", "too_many_problems", "there are more problems than are listed"
        severity: Literal["error", "warning"] = "warning" if code in WARNINGS else "error"
        self.found.append(Problem(pointer, code, printable(detail[:DETAIL_MAX]), severity))

    def full(self) -> bool:
        return len(self.found) >= PROBLEMS_MAX

    def unusable(self, pointer: str, code: str, detail: str) -> None:
        self.add(pointer, code, detail)
        self.scrubbed.add(printable(pointer[:POINTER_MAX]))

    def fatal(self) -> bool:
        return any(problem.severity == "error" for problem in self.found)


def is_storable(value: Any) -> bool:
    """Whether it is JSON within our bounds; iterative, so no depth can hurt it."""
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, str):
            if _text_flaw(item):
                return False
        elif isinstance(item, dict):
            if depth >= DEPTH_MAX or not all(isinstance(key, str) and not _text_flaw(key) for key in item):
                return False
            pending.extend([(member, depth + 1) for member in item.values()])
        elif isinstance(item, list):
            if depth >= DEPTH_MAX:
                return False
            pending.extend([(member, depth + 1) for member in item])
        elif _scalar_flaw(item):
            return False
    return True


def scrub(value: Any, problems: Problems, pointer: str = "", depth: int = 0) -> Any:
    """A copy in which whatever cannot be stored is replaced (by its own kind if possible), each reported once."""
    if isinstance(value, str):
        flaw = _text_flaw(value)
    elif isinstance(value, dict | list):
        flaw = ("too_deep", f"nested deeper than {DEPTH_MAX}") if depth >= DEPTH_MAX else None
    else:
        flaw = _scalar_flaw(value)
    if flaw:
        problems.unusable(pointer, *flaw)
        return _stand_in(value)
    if isinstance(value, list):
        return [scrub(item, problems, f"{pointer}/{at}", depth + 1) for at, item in enumerate(value)]
    if isinstance(value, dict):
        return _scrub_members(value, problems, pointer, depth)
    return value


def _stand_in(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return 0 if value.__class__ in (int, float) else None


def _scrub_members(value: Mapping[Any, Any], problems: Problems, pointer: str, depth: int) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, member in value.items():
        if not isinstance(key, str):
            problems.add(pointer, "invalid_key", f"a key is {type(key).__name__}, not text")
            continue
        where = pointer + pointer_of(key)
        if flaw := _text_flaw(key):
            problems.unusable(where, *flaw)
            continue
        kept[key] = scrub(member, problems, where, depth + 1)
    return kept


def _text_flaw(text: str) -> tuple[str, str] | None:
    if "\0" in text:
        return "nul_character", "U+0000 cannot be stored"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "lone_surrogate", "lone surrogates cannot be stored"
    return None


def _scalar_flaw(value: Any) -> tuple[str, str] | None:
    if value is None or value.__class__ is bool:
        return None
    if value.__class__ is float:
        return None if math.isfinite(value) else ("not_a_number", "NaN and Infinity are not JSON")
    if value.__class__ is int:
        fits = INTEGER_MIN <= value <= INTEGER_MAX
        return None if fits else ("number_too_large", "whole numbers must fit 64 bits")
    return "not_json", f"{type(value).__name__} is not JSON"
