"""The targets that this system is held to: what is measured for each, its floor and its goal, met or not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.bench.measure import OURS, Result, Spread, Values

FIRST, SECOND = "1 worker, saturated", "2 workers, saturated"
MANY, FEW, ALONE = "100 in flight", "8 in flight", "alone"
PARTS = ("worker", "postgres", "kafka")


class Repeat:
    """What was measured in one repeat: figures by workload, load and system."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._values = {(each.workload, each.load, each.system): each.values for each in results}

    def ours(self, workload: str, load: str) -> Values:
        return self._values[workload, load, OURS]

    def peer(self, name: str, workload: str, load: str) -> Values:
        return self._values[workload, load, name]

    def peers(self, workload: str, load: str) -> list[Values]:
        """At least one. Raises LookupError."""
        found = [
            values for (at, what, system), values in self._values.items() if (at, what) == (workload, load)
            and system != OURS
        ]  # fmt: skip
        if not found:
            raise LookupError(f"nobody was measured besides at {workload}, {load}")
        return found

    def load(self, workload: str, start: str) -> Values:
        """Of the load whose name starts so: loads bear their sizes. Raises LookupError."""
        for (at, what, _), values in self._values.items():
            if at == workload and what.startswith(start):
                return values
        raise LookupError(f"no load of {workload} is called {start}")


def _cost(values: Values, parts: Sequence[str] = PARTS, what: str = "step") -> float:
    """Microseconds of CPU a step that these kinds of processes took together."""
    return sum(values[f"{part} µs/{what}"] for part in parts)


def _rate_ratio(peer: str) -> Callable[[Repeat], float]:
    return lambda at: at.ours("chain-10", MANY)["steps/s"] / at.peer(peer, "chain-10", MANY)["steps/s"]


def _over_best(at: Repeat) -> float:
    return at.ours("chain-10", FEW)["steps/s"] / max(peer["steps/s"] for peer in at.peers("chain-10", FEW))


def _over_fastest(at: Repeat) -> float:
    return at.ours("chain-10", ALONE)["p50 ms"] / min(peer["p50 ms"] for peer in at.peers("chain-10", ALONE))


def _over_dbos(at: Repeat) -> float:
    return at.ours("chain-10", ALONE)["p50 ms"] / at.peer("dbos", "chain-10", ALONE)["p50 ms"]


def _growth(workload: str, small: str, large: str) -> Callable[[Repeat], float]:
    """The cost of a step at the large size over that at the small one. Kafka's has nothing to do with either."""
    parts = ("worker", "postgres")
    return lambda at: _cost(at.ours(workload, large), parts) / _cost(at.ours(workload, small), parts)


def _second_worker(at: Repeat) -> float:
    """Where a second one is wanted: one is saturated."""
    return _cost(at.load("workers", SECOND)) / _cost(at.load("workers", FIRST))


def _beyond_session(load: str, measure: str) -> Callable[[Repeat], float]:
    def seconds(at: Repeat) -> float:
        values = at.ours("take-over", load)
        return values[measure] - values["session time-out s"]

    return seconds


def _of(workload: str, load: str, measure: str) -> Callable[[Repeat], float]:
    return lambda at: at.ours(workload, load)[measure]


@dataclass(frozen=True, slots=True)
class Target:
    """`value`: what one repeat measured; raises LookupError if it did not. Ratios are taken within a repeat."""

    number: str
    what: str
    unit: str
    workload: str
    value: Callable[[Repeat], float]
    floor: float | None
    goal: float | None
    more: bool = True
    """More is better; else less."""

    def met(self, measured: float, wanted: float | None) -> bool | None:
        if wanted is None:
            return None
        return measured >= wanted if self.more else measured <= wanted


TARGETS: Sequence[Target] = (
    Target("1", "chain-10, 100 in flight, steps/s against DBOS", "x", "chain-10", _rate_ratio("dbos"), 6, 15),
    Target("1", "chain-10, 100 in flight, steps/s against absurd", "x", "chain-10", _rate_ratio("absurd"), 2.5, 5),
    Target("1", "chain-10, 100 in flight, steps/s against Restate", "x", "chain-10", _rate_ratio("restate"), 2, 4),
    Target("1b", "chain-10, 8 in flight, steps/s against the best peer", "x", "chain-10", _over_best, 1, 2),
    Target("2", "one chain-10 run alone, p50 against DBOS", "x", "chain-10", _over_dbos, 1, None, more=False),
    Target("2", "one chain-10 run alone, p50 against the fastest", "x", "chain-10", _over_fastest, None, 1, more=False),
    Target("2", "one chain-10 run alone, p99 over p50", "x", "chain-10",
           lambda at: at.ours("chain-10", ALONE)["p99 ms"] / at.ours("chain-10", ALONE)["p50 ms"], 3, None, more=False),
    Target("3", "pure-10, node runs/s", "/s", "pure-10", _of("pure-10", MANY, "node runs/s"), 8_000, 20_000),
    Target("4", "write over HTTP to its outcome, one client, p50", "ms", "http",
           _of("http", "one client", "p50 ms"), 12, 6, more=False),
    Target("5", "reads of a run by id from one gateway", "/s", "reads",
           lambda at: at.load("reads", "")["reads/s"], 1_000, 2_000),
    Target("6", "rebuild, events/s of one process", "/s", "rebuild",
           _of("rebuild", "compared with the tables", "events/s"), 15_000, 30_000),
    Target("7", "cost of a step, 1 000 nodes a run over 10", "x", "length",
           _growth("length", "10 nodes a run", "1000 nodes a run"), 1.3, 1.1, more=False),
    Target("7", "cost of a step, 1 000 000 node runs stored over none", "x", "stored",
           _growth("stored", "0 node runs stored", "1 000 000 node runs stored"), 1.3, 1.1, more=False),
    Target("8", "cost of a step, two workers over a saturated one", "x", "workers",
           _second_worker, 1.15, 1.05, more=False),
    Target("9", "worker memory at 2 000 runs in flight", "MiB", "memory",
           _of("memory", "2000 in flight", "most MiB"), 250, 150, more=False),
    Target("10", "first record of a worker after its start", "s", "take-over",
           _of("take-over", "start, none before", "first lane s"), 8, 3, more=False),
    Target("10", "first record after a kill -9, beyond the session time-out", "s", "take-over",
           _beyond_session("kill -9 of the only one, a new one at once", "first lane s"), 4, None, more=False),
    Target("10", "every lane after a kill -9 of one of two, beyond it", "s", "take-over",
           _beyond_session("kill -9 of one of two", "every lane s"), 4, None, more=False),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """A target and what was measured for it; `spread` is None if nothing was."""

    target: Target
    values: Sequence[float]

    @property
    def spread(self) -> Spread | None:
        return Spread.of(self.values) if self.values else None

    @property
    def floor_met(self) -> bool | None:
        """None: there is no floor. What was not measured is not met."""
        return self._met(self.target.floor)

    @property
    def goal_met(self) -> bool | None:
        return self._met(self.target.goal)

    def _met(self, wanted: float | None) -> bool | None:
        if self.spread is None:
            return None if wanted is None else False
        return self.target.met(self.spread.median, wanted)

    def document(self) -> dict[str, Any]:
        target, spread = self.target, self.spread
        return {
            "number": target.number,
            "what": target.what,
            "unit": target.unit,
            "more_is_better": target.more,
            "values": list(self.values),
            "median": None if spread is None else spread.median,
            "floor": target.floor,
            "floor_met": self.floor_met,
            "goal": target.goal,
            "goal_met": self.goal_met,
        }


def findings(results: Sequence[Result], workloads: Collection[str]) -> Iterator[Finding]:
    """What was measured for each target of these workloads, repeat by repeat."""
    repeats: Mapping[int, list[Result]] = {number: [] for number in sorted({each.repeat for each in results})}
    for each in results:
        repeats[each.repeat].append(each)
    seen = [Repeat(each) for each in repeats.values()]
    for target in TARGETS:
        if target.workload in workloads:
            yield Finding(target, list(_values(target, seen)))


def _values(target: Target, repeats: Sequence[Repeat]) -> Iterator[float]:
    for repeat in repeats:
        try:
            yield target.value(repeat)
        except LookupError:  # Another workload's repeat, or a size or a peer that was not asked for.
            continue
