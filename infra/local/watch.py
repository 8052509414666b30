"""`ap status --watch`: processes, lanes, rates and ages, drawn anew every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from infra.escaping import escaped
from infra.local.console import SafeConsole
from infra.local.embedded.processes import is_alive
from infra.local.embedded.state import State, read_state
from infra.operate.status import STILL_SECONDS, LaneStatus, NoAnswer, Sample, moveless, sample, standing_still
from infra.settings import Settings
from schemas.runtime import RUN_ENDED

LANES_SHOWN_MAX = 40
RUN_ENDS = frozenset(f"runtime.run_{status}" for status in RUN_ENDED)
STEP_BEGUN = "runtime.node_dispatched"
NUMBERS = frozenset("pid,CPU %,MiB,restarts,lag,next offset,made,unsent,units,a second".split(","))
"""Columns set to the right."""


async def watch(settings: Settings, every_seconds: float, *, every_lane: bool, times: int | None = None) -> None:
    """Draw until interrupted, or `times` times; where nobody looks at a terminal, one drawing below the other."""
    console = SafeConsole()
    earlier: list[Sample] = []
    processes: dict[int, psutil.Process] = {}
    with contextlib.ExitStack() as stack:
        live = None
        if console.is_terminal:
            live = stack.enter_context(Live(Text("Looking ..."), console=console, auto_refresh=False, screen=True))
        drawn = 0
        while times is None or drawn < times:
            problem = ""
            try:
                seen = await sample(settings, earlier[-1] if earlier else None, ages=True)
                earlier = [each for each in earlier if seen.at - each.at <= STILL_SECONDS] + [seen]
            except NoAnswer as error:
                problem = str(error)
            drawing = Group(
                *_head(settings.data_dir, processes),
                *body(earlier, every_lane=every_lane, rows=console.height - 22),
                *([Text(escaped(problem), style="bold red")] if problem else []),
            )
            if live is None:
                console.print(drawing)
            else:
                live.update(drawing, refresh=True)
            drawn += 1
            await asyncio.sleep(every_seconds)


def _head(data: Path, processes: dict[int, psutil.Process]) -> list[RenderableType]:
    state = read_state(data)
    if state is None or not state.is_running:
        return []
    since = f"Running since {state.since} in {data.absolute()}, gateway {state.gateway_url}"
    return [Text(escaped(since)), _roles(state, processes)]


def _roles(state: State, processes: dict[int, psutil.Process]) -> Table:
    table = _table("process", "pid", "CPU %", "MiB", "restarts", "metrics")
    for each in state.processes:
        pid = each.identity.pid
        cells = ["ended", "", ""]
        if is_alive(each.identity):
            try:
                process = processes.setdefault(pid, psutil.Process(pid))
                cells = [str(pid), f"{process.cpu_percent():.0f}", f"{process.memory_info().rss / 2**20:.0f}"]
            except psutil.Error:  # It has just ended.
                pass
        table.add_row(f"{each.role}-{each.index}", *cells, str(each.restarts), str(each.metrics_port or "-"))
    return table


def body(earlier: Sequence[Sample], *, every_lane: bool, rows: int) -> list[RenderableType]:
    """Lanes, what waits, rates and what stands still, by the samples of the last STILL_SECONDS."""
    if not earlier:
        return []
    seen, before = earlier[-1], earlier[0]
    shown: list[RenderableType] = [_lanes(seen, every_lane=every_lane, rows=rows), _figures(earlier)]
    long_enough = seen.at - before.at > STILL_SECONDS - 1
    problems = standing_still(before, seen)
    if not long_enough:  # What has just begun to wait is given time; what has stopped is said at once.
        unmoved = set(moveless(before, seen))
        problems = [problem for problem in problems if problem not in unmoved]
    return shown + [Text(escaped(f"Standing still: {problem}"), style="bold red") for problem in problems]


def _lanes(seen: Sample, *, every_lane: bool, rows: int) -> Table:
    table = _table("lane", "lag", "next offset", "made", "unsent", "oldest", "owner")
    lanes = [lane for lane in seen.lanes if every_lane or lane.lag or lane.unsent or lane.stopped]
    lanes.sort(key=lambda lane: (not lane.stopped, -lane.lag, -lane.unsent, lane.id))
    limit = max(5, min(rows, LANES_SHOWN_MAX)) if not every_lane else len(lanes)
    for lane in lanes[:limit]:
        table.add_row(*_lane(lane), style="bold red" if lane.stopped else None)
    others = len(seen.lanes) - len(lanes[:limit])
    if others:
        table.add_row(f"{others} others", str(sum(lane.lag for lane in lanes[limit:])), *[""] * 5, style="dim")
    return table


def _lane(lane: LaneStatus) -> list[str]:
    age = "" if lane.oldest_seconds is None else seconds(lane.oldest_seconds)
    owner = f"STOPPED: {lane.stopped}" if lane.stopped else lane.owner or "nobody"
    figures = (lane.lag, lane.next_offset, lane.position, lane.unsent)
    return [f"{lane.topic}/{lane.partition}", *(str(figure) for figure in figures), age, escaped(owner)]


def _figures(earlier: Sequence[Sample]) -> Table:
    seen = earlier[-1]
    table = _table("waiting", "units", "oldest", "", "rate", "a second")
    waiting = [
        (what.replace("_", " "), str(units.count), seconds(units.oldest_seconds) if units.oldest_seconds else "")
        for what, units in seen.waiting.items()
    ]
    moving = [(name, f"{figure:,.0f}") for name, figure in rates(earlier).items()]
    for row in range(max(len(waiting), len(moving))):
        left = waiting[row] if row < len(waiting) else ("", "", "")
        right = moving[row] if row < len(moving) else ("", "")
        table.add_row(*left, "", *right)
    return table


def rates(samples: Sequence[Sample]) -> dict[str, float]:
    """What went on between the last two samples, a second; nothing before there are two."""
    if len(samples) < 2:
        return {}
    before, after = samples[-2:]
    passed = after.at - before.at
    if passed <= 0:
        return {}
    stood = {lane.id: lane for lane in before.lanes}
    moved = [(lane, stood[lane.id]) for lane in after.lanes if lane.id in stood]
    events = after.new_events
    counts = {
        "records handled": sum(lane.next_offset - was.next_offset for lane, was in moved),
        "records made": sum(lane.position - was.position for lane, was in moved),
        "events": sum(events.values()),
        "steps begun": events.get(STEP_BEGUN, 0),
        "runs begun": events.get("runtime.run_created", 0),
        "runs ended": sum(count for type, count in events.items() if type in RUN_ENDS),
    }
    return {what: count / passed for what, count in counts.items()}


def seconds(age: float) -> str:
    """An age for people: 0.42 s, 17 s, 5 min, 3 h."""
    for limit, unit, size in ((1.0, "s", 0.01), (120.0, "s", 1.0), (7_200.0, "min", 60.0)):
        if age < limit:
            return f"{age:.2f} s" if size < 1 else f"{age / size:.0f} {unit}"
    return f"{age / 3_600:.0f} h"


def _table(*names: str) -> Table:
    table = Table(*names, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in table.columns:
        if column.header in NUMBERS:
            column.justify = "right"
    return table
