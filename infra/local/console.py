"""The terminal as rich draws on it: what strangers wrote is neither markup nor a terminal sequence."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from infra.escaping import escaped


class SafeConsole(Console):
    """Takes text as text: styles come from `Text` and tables only, never from brackets in a string."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is drawn; line breaks in them are rich's own ones by then."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else "\n".join(map(escaped, text.split("\n"))), style, control)
