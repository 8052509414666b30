"""The plot of a comparison: bars by hand in SVG, so that drawing needs no library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from infra.bench.bench import Report
from infra.bench.measure import OURS
from infra.bench.report import Line, lines

WIDTH = 720
LABEL_WIDTH = 130
BAR_HEIGHT = 22
ROW_HEIGHT = 28
PANEL_GAP = 46
OWN_COLOUR = "#1f6feb"
OTHER_COLOUR = "#9aa4b2"
PANELS = (("steps/s", "steps/s, more is better"), ("p50 ms", "one run, p50 in ms, less is better"))


@dataclass(frozen=True, slots=True)
class Bar:
    """One system: the median as the bar, least and greatest as its whisker."""

    name: str
    value: float
    low: float
    high: float


def svg(report: Report) -> str:
    """A panel for each load of chain-10: throughput where it was measured, else latency."""
    panels: list[tuple[str, list[Bar]]] = []
    found = lines(report.results, "chain-10")
    for load in dict.fromkeys(line.load for line in found):
        own = [line for line in found if line.load == load]
        for measure, unit in PANELS:
            bars = _bars(own, measure)
            if bars:
                panels.append((f"chain-10, {load}: {unit}", bars))
                break
    body, top = [], 34
    for title, bars in panels:
        body.append(_text(12, top, title, weight="bold"))
        body.append(_panel(bars, top + 12))
        top += PANEL_GAP + ROW_HEIGHT * len(bars)
    machine = report.machine
    body.append(_text(12, top, f"{machine['cores']} cores, {machine['cpu']}, {machine['at'][:10]}", size=11))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + 14}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{"".join(body)}</svg>\n'
    )


def _bars(found: Sequence[Line], measure: str) -> list[Bar]:
    spreads = [(line.system, line.values[measure]) for line in found if measure in line.values]
    return [Bar(name, spread.median, spread.low, spread.high) for name, spread in spreads]


def _panel(bars: Sequence[Bar], top: float) -> str:
    room = WIDTH - LABEL_WIDTH - 90
    scale = room / max(bar.high for bar in bars)
    parts = []
    for number, bar in enumerate(bars):
        y = top + number * ROW_HEIGHT
        middle = y + BAR_HEIGHT / 2
        low, high = LABEL_WIDTH + bar.low * scale, LABEL_WIDTH + bar.high * scale
        colour = OWN_COLOUR if bar.name == OURS else OTHER_COLOUR
        parts += [
            _text(LABEL_WIDTH - 8, middle + 4, bar.name, anchor="end"),
            f'<rect x="{LABEL_WIDTH}" y="{y:.1f}" width="{bar.value * scale:.1f}" height="{BAR_HEIGHT}"'
            f' fill="{colour}"/>\n',
            f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}" stroke="black"/>\n',
            _text(high + 8, middle + 4, f"{bar.value:,.0f}".replace(",", " ")),
        ]
    return "".join(parts)


def _text(x: float, y: float, text: str, *, size: int = 13, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>\n"
    )
