"""What a benchmark shows to people: one table a workload, systems side by side, medians with their spread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from infra.bench.bench import Report
from infra.bench.catalogue import PEERS
from infra.bench.measure import OURS, Result, Spread
from infra.bench.targets import Finding, Target

RECORDS = "a node run row; events of its start and end, in Postgres and on Kafka; its result as a command on Kafka"
COST = " µs/"
"""What marks a measure as CPU time of a kind of process: `worker µs/step`."""


@dataclass(frozen=True, slots=True)
class Line:
    """One load on one system, over all repeats."""

    load: str
    system: str
    values: Mapping[str, Spread]


def lines(results: Sequence[Result], workload: str) -> list[Line]:
    """By load, then by system, both in the order they were measured."""
    own = [result for result in results if result.workload == workload]
    found = []
    for load in dict.fromkeys(result.load for result in own):
        for system in dict.fromkeys(result.system for result in own):
            repeats = [result.values for result in own if (result.load, result.system) == (load, system)]
            names = dict.fromkeys(name for values in repeats for name in values)
            spreads = {name: Spread.of([values[name] for values in repeats if name in values]) for name in names}
            if repeats:
                found.append(Line(load, system, spreads))
    return found


def text(report: Report) -> str:
    """Everything for a terminal or a README: the machine, a table for each workload, ratios, what peers record."""
    parts = [_machine(report), *tables(report.results)]
    compared = list(ratios(report.results))
    if compared:
        parts.append("\n".join(["Within a repeat, median (least-greatest) of all:", *compared]))
    if report.versions:
        systems = (
            f"{name} {version} ({PEERS[name].set_up}): {PEERS[name].records}"
            for name, version in report.versions.items()
        )
        own = f"{OURS} (one worker on Kafka and Postgres): {RECORDS}"
        parts.append("\n".join(["What a step leaves behind:", own, *systems]))
    return "\n\n".join(parts)


def _machine(report: Report) -> str:
    machine, options = report.machine, report.options
    earlier = "".join(f"\n{note}" for note in report.notes)
    return (
        f"{machine['at']}, {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB,"
        f" {machine['system']}, Python {machine['python']}, Kafka {machine['kafka']}, Postgres {machine['postgres']}"
        f" (fsync and synchronous_commit on), load average before {machine['load_average']};"
        f" {options.repeats} repeats of at most {options.seconds:g} s and {options.runs} runs: median (least-greatest)"
        f"{earlier}"
    )


def tables(results: Sequence[Result]) -> Iterator[str]:
    """A Markdown table for each workload."""
    for workload in dict.fromkeys(result.workload for result in results):
        found = lines(results, workload)
        names = list(dict.fromkeys(_title(name) for line in found for name in line.values))
        rows = [[line.load, line.system, *(_cell(line, name) for name in names)] for line in found]
        yield f"{workload}\n{_aligned([['load', 'system', *names], *rows])}"


def ratios(results: Sequence[Result]) -> Iterator[str]:
    """How this system's rates and median latencies compare to each other system's, within the same repeats."""
    ours = {(each.workload, each.load, each.repeat): each.values for each in results if each.system == OURS}
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for each in results:
        own = ours.get((each.workload, each.load, each.repeat), {})
        for name, other in each.values.items() if each.system != OURS else ():
            if (name.endswith("s/s") or name == "p50 ms") and name in own and other:
                found.setdefault((each.workload, each.load, name, each.system), []).append(own[name] / other)
    for (workload, load, name, system), values in found.items():
        spread = Spread.of(values)
        yield f"{workload}, {load}, {name}: {spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f}) x {system}"


def targets(findings: Sequence[Finding]) -> str:
    """A Markdown table: each target with what was measured for it."""
    rows = [["#", "target", "floor", "goal", "measured", "repeats", "floor met", "goal met"]]
    for each in findings:
        target, spread = each.target, each.spread
        measured = "not measured"
        if spread is not None:
            measured = f"{_quantity(spread.median, target.unit)} ({_number(spread.low)}-{_number(spread.high)})"
        rows.append([
            target.number, target.what, _wanted(target, target.floor), _wanted(target, target.goal), measured,
            str(len(each.values)), _said(each.floor_met), _said(each.goal_met),
        ])  # fmt: skip
    return _aligned(rows)


def _wanted(target: Target, value: float | None) -> str:
    return "" if value is None else f"{'>=' if target.more else '<='} {_quantity(value, target.unit)}"


def _quantity(value: float, unit: str) -> str:
    return f"{_number(value)} {unit}" if unit[0].isalpha() and unit != "x" else f"{_number(value)}{unit}"


def _said(met: bool | None) -> str:
    return "" if met is None else "yes" if met else "NO"


def _title(name: str) -> str:
    """The column of a measure; CPU times of all kinds of processes share one."""
    return f"CPU µs/{name.partition(COST)[2]}" if COST in name else name


def _cell(line: Line, title: str) -> str:
    if title.startswith("CPU µs/"):
        costs = {name.partition(COST)[0]: spread for name, spread in line.values.items() if _title(name) == title}
        return ", ".join(f"{kind} {_number(spread.median)}" for kind, spread in costs.items())
    spread = line.values.get(title)
    if spread is None:
        return ""
    if spread.low == spread.high:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.low)}-{_number(spread.high)})"


def _number(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    shown = [f"| {' | '.join(row)} |" for row in padded]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])
