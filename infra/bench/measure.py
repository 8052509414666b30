"""One measurement: a load on a system, with the CPU time that every kind of process spent on it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from infra.bench.load import Load, Measured, percentile
from infra.bench.processes import CpuSpent, Kinds, read_cpu

OURS = "agent-platform"

Values = Mapping[str, float]
"""What was measured: by the name of the measure, its unit the last word."""


Series = Mapping[str, Sequence[float]]
"""What changed while it was measured: by name with its unit last, one value a sample; `s` is when."""


class System(Protocol):
    """A started system that runs one kind of run."""

    @property
    def name(self) -> str: ...

    def kinds(self) -> Kinds:
        """The processes to account for."""

    async def load(self, load: Load) -> Measured:
        """Put a load on it. Every run has ended well when this returns."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one repeat of one load measured on one system. Results of the same `repeat` were measured in turns."""

    workload: str
    load: str
    system: str
    values: Values
    repeat: int = 0
    series: Series | None = None

    def document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        return cls(**document)


async def measure(system: System, load: Load) -> tuple[Measured, CpuSpent]:
    """Put a load on a system; what it did, and the CPU time that went into it."""
    return await accounted(system.kinds(), system.load(load))


async def accounted(kinds: Kinds, work: Awaitable[Measured]) -> tuple[Measured, CpuSpent]:
    """Await some work; what it did, and the CPU time that these processes spent meanwhile."""
    before = read_cpu(kinds)
    measured = await work
    return measured, read_cpu(kinds).since(before)


def throughput(measured: Measured, spent: CpuSpent, steps: int, what: str = "step") -> Values:
    """Rate, latency of a run, and microseconds of CPU a step. `steps`: of one run."""
    done = measured.runs * steps
    return {
        f"{what}s/s": done / measured.seconds,
        **latency(measured),
        **cpu(spent, done, what),
        "runs": measured.runs,
    }


def latency(measured: Measured) -> Values:
    return {
        "p50 ms": percentile(measured.latencies, 0.50) * 1_000,
        "p99 ms": percentile(measured.latencies, 0.99) * 1_000,
    }


def cpu(spent: CpuSpent, done: int, what: str) -> Values:
    """`others cores`: how much of the machine went to processes that are no part of the measurement."""
    kinds = {f"{kind} µs/{what}": seconds / done * 1e6 for kind, seconds in spent.kinds.items()}
    return {**kinds, "others cores": spent.others_cores()}


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values, and the least and the greatest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        ordered = sorted(values)
        half = len(ordered) // 2
        median = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
        return cls(median, ordered[0], ordered[-1])
