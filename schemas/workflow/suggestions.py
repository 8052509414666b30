"""The name that somebody probably meant."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

NAME_CHARACTERS_MAX: Final = 48
COMPARISONS_MAX: Final = 10_000
"""A comparison takes up to 0.1 ms; beyond so many, problems come without suggestions."""


@dataclass(slots=True)
class Suggestions:
    """Those for one definition."""

    comparisons: int = COMPARISONS_MAX

    def hint(self, name: str, known: Collection[str]) -> str:
        """The end of a sentence that names the nearest known name; empty if none is near."""
        if len(name) > NAME_CHARACTERS_MAX or len(known) > self.comparisons:
            return ""
        self.comparisons -= len(known)
        near = get_close_matches(name, [each for each in known if len(each) <= NAME_CHARACTERS_MAX], 1)
        return f"; did you mean {near[0]!r}?" if near else ""
