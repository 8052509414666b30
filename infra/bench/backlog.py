"""Workloads with very much queued: a backlog that a worker finds at its start, and a tenant beside a noisy one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from infra.bench.bench import Bench
from infra.bench.load import Load, Measured
from infra.bench.measure import Series, Values, accounted, cpu, latency
from infra.bench.memory import resident_mebibytes
from infra.bench.platform import BenchFailed, Chain, Platform
from infra.bench.processes import CpuSpent
from infra.bench.role import NOOP
from infra.bench.workloads import NODES

BACKLOG_NODES = 2
SAMPLE_SECONDS = 0.25
DRAIN_SECONDS_MAX = 900.0
EDGE = 0.2
"""The share of the work that counts as its beginning, and as its end."""
QUIET_IN_FLIGHT = 2
QUIET, NOISY = "quiet", "noisy"


async def backlog(bench: Bench) -> None:
    """Very many runs are queued before a worker starts; once, as it is long enough."""
    runs = bench.options.backlog_runs
    bench.repeat = 0
    async with bench.fresh("backlog") as platform:
        async with platform.running():
            version = await platform.create_workflow(BACKLOG_NODES, NOOP)
            await Chain(platform, version, BACKLOG_NODES).load(bench.warm_up(100))
        began = time.perf_counter()
        ids = await platform.queue(version, runs)
        queued = time.perf_counter() - began
        await bench.quiesce()
        done = platform.node_runs
        async with platform.running():
            series, spent = await _drained(platform, done)
        await platform.check(ids, BACKLOG_NODES)
    cost = cpu(spent, runs * BACKLOG_NODES, "step")
    values = {**edges(series), **cost, "queued in s": queued, "runs": runs}
    bench.note("backlog", f"{runs:,} runs queued".replace(",", " "), values, series=series)


async def _drained(platform: Platform, done: int) -> tuple[Series, CpuSpent]:
    """Wait until every queued run has ended, looking at the only worker now and then. Raises BenchFailed."""
    worker = platform.workers[0].pid
    seconds, mebibytes, node_runs = [], [], []
    began = time.perf_counter()

    async def watch() -> Measured:
        while True:
            now = time.perf_counter() - began
            seconds.append(now)
            mebibytes.append(resident_mebibytes(worker)[0])
            node_runs.append(float(platform.node_runs - done))
            if not platform.queued:
                return Measured(now, [now])
            if now > DRAIN_SECONDS_MAX:
                raise BenchFailed(f"{platform.queued} runs have not ended within {DRAIN_SECONDS_MAX:g} s")
            await asyncio.sleep(SAMPLE_SECONDS)

    _, spent = await accounted(platform.kinds(), watch())
    return {"s": seconds, "worker MiB": mebibytes, "node runs": node_runs}, spent


def edges(series: Series) -> Values:
    """Rate and memory at the beginning and at the end of some work, from samples of it."""
    seconds, done, memory = series["s"], series["node runs"], series["worker MiB"]
    first = next(index for index, count in enumerate(done) if count > 0)  # The worker started before.
    early = next(index for index, count in enumerate(done) if count >= EDGE * done[-1])
    late = next(index for index, count in enumerate(done) if count >= (1 - EDGE) * done[-1])
    finished = next(index for index, count in enumerate(done) if count >= done[-1])
    return {
        "steps/s": _rate(seconds, done, max(0, first - 1), finished),
        "first fifth steps/s": _rate(seconds, done, max(0, first - 1), early),
        "last fifth steps/s": _rate(seconds, done, late, finished),
        "after a fifth MiB": max(memory[: early + 1]),
        "most MiB": max(memory),
    }


def _rate(seconds: Sequence[float], done: Sequence[float], start: int, end: int) -> float:
    passed = seconds[end] - seconds[start]
    return (done[end] - done[start]) / passed if passed else 0.0


async def noisy(bench: Bench) -> None:
    """A tenant with few runs at a time, alone and while another has queued very many."""
    options = bench.options
    for _ in bench.repeats():
        await bench.quiesce()
        async with bench.platform.running():
            loud = await bench.platform.create_workflow(NODES, NOOP, NOISY)
            quiet = Chain(bench.platform, await bench.platform.create_workflow(NODES, NOOP, QUIET), NODES, QUIET)
            await quiet.load(bench.warm_up(max(options.in_flight)))
            load = Load(QUIET_IN_FLIGHT, options.alone_runs, options.seconds)
            alone = await quiet.load(load)
            bench.note("noisy", "quiet tenant alone", _quiet(alone))
            await bench.platform.queue(loud, options.noisy_runs, NOISY)
            beside = await quiet.load(load)
            left = bench.platform.queued
            values = {**_quiet(beside), "noisy runs left": left}
            bench.note("noisy", f"beside {options.noisy_runs} runs of another", values)
            await _until_none_is_left(bench.platform)


def _quiet(measured: Measured) -> Values:
    """The longest too: those that came when the queue was long are few among all."""
    return {**latency(measured), "most ms": max(measured.latencies) * 1_000, "runs": measured.runs}


async def _until_none_is_left(platform: Platform) -> None:
    for _ in range(int(DRAIN_SECONDS_MAX / SAMPLE_SECONDS)):
        if not platform.queued:
            return
        await asyncio.sleep(SAMPLE_SECONDS)
    raise BenchFailed(f"{platform.queued} runs have not ended within {DRAIN_SECONDS_MAX:g} s")
