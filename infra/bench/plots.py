"""The plot of a benchmark: bars and lines by hand in SVG, so that drawing needs no library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from infra.bench.bench import Report
from infra.bench.measure import OURS, Result, Series
from infra.bench.report import COST, Line, lines

WIDTH = 720
LABEL_WIDTH = 170
BAR_HEIGHT = 22
ROW_HEIGHT = 28
PANEL_GAP = 46
CURVE_HEIGHT = 120
OWN_COLOUR = "#1f6feb"
OTHER_COLOUR = "#9aa4b2"
MEASURES = (("steps/s", "steps/s, more is better"), ("p50 ms", "one run, p50 in ms, less is better"))
GROWING = ("length", "stored", "workers")
"""Workloads that ask whether a step costs more at one size than at another."""
CHARGED = ("worker", "postgres")


@dataclass(frozen=True, slots=True)
class Bar:
    """One system or size: the median as the bar, least and greatest as its whisker."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of the plot, drawn from its own upper edge on."""

    title: str
    drawing: str
    height: int


def svg(report: Report) -> str:
    """Systems side by side, cost against size, and what happened while a backlog was worked off."""
    panels = [*_systems(report), *_costs(report), *_curves(report)]
    body, top = [], 34
    for panel in panels:
        body.append(_text(12, top, panel.title, weight="bold"))
        body.append(f'<g transform="translate(0 {top + 12})">{panel.drawing}</g>\n')
        top += PANEL_GAP + panel.height
    machine = report.machine
    body.append(_text(12, top, f"{machine['cores']} cores, {machine['cpu']}, {machine['at'][:10]}", size=11))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + 14}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{"".join(body)}</svg>\n'
    )


def _systems(report: Report) -> Iterator[Panel]:
    """A panel for each load of chain-10: throughput where it was measured, else latency."""
    found = lines(report.results, "chain-10")
    for load in dict.fromkeys(line.load for line in found):
        own = [line for line in found if line.load == load]
        for measure, unit in MEASURES:
            spreads = [(line.system, line.values[measure]) for line in own if measure in line.values]
            if spreads:
                bars = [Bar(name, spread.median, spread.low, spread.high) for name, spread in spreads]
                yield _bars(f"chain-10, {load}: {unit}", bars, OURS)
                break


def _costs(report: Report) -> Iterator[Panel]:
    """What a step costs a worker and Postgres at each size."""
    for workload in GROWING:
        found = lines(report.results, workload)
        if found:
            bars = [_cost(line) for line in found]
            yield _bars(f"{workload}: µs of CPU a step, worker and Postgres", bars, bars[0].name)


def _cost(line: Line) -> Bar:
    kinds = [line.values[f"{kind}{COST}step"] for kind in CHARGED]
    low, high = sum(kind.low for kind in kinds), sum(kind.high for kind in kinds)
    return Bar(line.load, sum(kind.median for kind in kinds), low, high)


def _curves(report: Report) -> Iterator[Panel]:
    for result in report.results:
        if result.series is not None:
            for measure in result.series:
                if measure != "s":
                    yield _curve(result, result.series, measure)


def _bars(title: str, bars: Sequence[Bar], own: str) -> Panel:
    room = WIDTH - LABEL_WIDTH - 90
    scale = room / (max(bar.high for bar in bars) or 1)
    parts = []
    for number, bar in enumerate(bars):
        y = number * ROW_HEIGHT
        middle = y + BAR_HEIGHT / 2
        low, high = LABEL_WIDTH + bar.low * scale, LABEL_WIDTH + bar.high * scale
        colour = OWN_COLOUR if bar.name == own else OTHER_COLOUR
        parts += [
            _text(LABEL_WIDTH - 8, middle + 4, bar.name, anchor="end", size=12),
            f'<rect x="{LABEL_WIDTH}" y="{y:.1f}" width="{bar.value * scale:.1f}" height="{BAR_HEIGHT}"'
            f' fill="{colour}"/>\n',
            f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}" stroke="black"/>\n',
            _text(high + 8, middle + 4, f"{bar.value:,.0f}".replace(",", " ")),
        ]
    return Panel(title, "".join(parts), ROW_HEIGHT * len(bars))


def _curve(result: Result, series: Series, measure: str) -> Panel:
    """One measure over time, from zero."""
    seconds, values = series["s"], series[measure]
    room = WIDTH - LABEL_WIDTH - 90
    wide, high = room / (seconds[-1] or 1), CURVE_HEIGHT / (max(values) or 1)
    points = " ".join(
        f"{LABEL_WIDTH + second * wide:.1f},{CURVE_HEIGHT - value * high:.1f}"
        for second, value in zip(seconds, values, strict=True)
    )
    drawing = (
        f'<path d="M{LABEL_WIDTH} 0V{CURVE_HEIGHT}H{LABEL_WIDTH + room}" stroke="{OTHER_COLOUR}" fill="none"/>\n'
        f'<polyline points="{points}" stroke="{OWN_COLOUR}" stroke-width="2" fill="none"/>\n'
        + _text(LABEL_WIDTH - 8, 12, f"{max(values):,.0f}".replace(",", " "), anchor="end", size=12)
        + _text(LABEL_WIDTH + room, CURVE_HEIGHT + 16, f"{seconds[-1]:.0f} s", anchor="end", size=12)
    )
    return Panel(f"{result.workload}, {result.load}: {measure}", drawing, CURVE_HEIGHT + 20)


def _text(x: float, y: float, text: str, *, size: int = 13, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>\n"
    )
