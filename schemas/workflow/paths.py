"""Dotted paths such as `nodes.retrieve-docs.output.items.0.title`: how they are written and read."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Final

SEGMENTS_MAX: Final = 64
ROOTS: Final = ("state", "inputs", "nodes", "current", "run")

Scope = Mapping[str, Any]
Path = tuple[str, ...]
Run = Callable[[Scope], Any]


class ExpressionError(ValueError):
    """Does not compile; `position` counts characters from 0."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"{reason} (at character {position})")
        self.position = position
        self.reason = reason


def is_name_char(char: str) -> bool:
    """Letters and digits of any script (with their combining marks) and `_`."""
    return char == "_" or char.isalpha() or char.isdecimal() or unicodedata.category(char)[0] == "M"


def scan_path(text: str, start: int) -> tuple[Path, int]:
    """Read the path that starts at `start`; answers it and where it ends. Hyphens only in a node's id."""
    segments: list[str] = []
    position = start
    while True:
        end = position
        in_node_id = segments == ["nodes"]
        while end < len(text) and (is_name_char(text[end]) or (in_node_id and text[end] == "-")):
            end += 1
        if end == position:
            raise ExpressionError(position, "a name or a list index is missing")
        segments.append(text[position:end])
        if end == len(text) or text[end] != ".":
            break
        position = end + 1
    if segments[0] not in ROOTS:
        hint = _nearest_root(segments[0])
        raise ExpressionError(start, f"unknown name {segments[0][:64]!r}{hint}: paths begin with {', '.join(ROOTS)}")
    if segments == ["nodes"]:
        raise ExpressionError(start, "'nodes' needs a node id")
    if len(segments) > SEGMENTS_MAX:
        raise ExpressionError(start, f"a path has at most {SEGMENTS_MAX} segments")
    return tuple(segments), end


_BY_FIRST_LETTER: Final = {root[0]: root for root in ROOTS}


def _nearest_root(word: str) -> str:
    """A hint in constant time: each of very many placeholders may be wrong."""
    root = _BY_FIRST_LETTER.get(word[0].lower(), "")
    return f", did you mean {root!r}?" if root and abs(len(word) - len(root)) <= 2 else ""


def _index(segment: str) -> int:
    return int(segment) if segment.isascii() and segment.isdecimal() and len(segment) < 10 else -1


def path_reader(path: Path) -> Run:
    """A closure that reads the path; whatever is missing is None."""
    root = path[0]
    steps = tuple((segment, _index(segment)) for segment in path[1:])
    if len(steps) == 1:
        only = steps[0][0]

        def read_short(scope: Scope) -> Any:
            value = scope.get(root)
            return value.get(only) if isinstance(value, dict) else _step(value, steps[0])

        return read_short

    def read(scope: Scope) -> Any:
        value = scope.get(root)
        for step in steps:
            value = value.get(step[0]) if isinstance(value, dict) else _step(value, step)
        return value

    return read


def _step(value: Any, step: tuple[str, int]) -> Any:
    if isinstance(value, list) and 0 <= step[1] < len(value):
        return value[step[1]]
    return None
