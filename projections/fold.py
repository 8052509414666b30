"""Rows of one aggregate in memory while its events are folded: what rebuilds and time travel read through."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Kinded = tuple[type[Any], str]


class FoldRows:
    """`schemas.decider.Rows` of one aggregate that begins with nothing; `rows` holds what its events have made."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: dict[Kinded, Any] = {}

    def get(self, kind: type[Any], id: str) -> Any:
        return self.rows.get((kind, id))

    def want(self, kind: type[Any], ids: Iterable[str]) -> None:
        """All there is is in memory."""

    def live(self, kind: type[Any]) -> list[Any]:
        raise LookupError(f"a fold reads rows by their ids, never all live ones: {kind.__name__}")

    def fact(self, kind: type[Any], id: str) -> Any:
        raise LookupError(f"a fold may read its own aggregate only, not {kind.__name__} {id}")

    def apply(self, evolve: Callable[[Any, Any], Iterable[Any]], recorded: Any) -> None:
        """Fold one event. Raises whatever a broken history makes `evolve` raise."""
        for row in evolve(self, recorded):
            self.rows[type(row), row.id] = row
