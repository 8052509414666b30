"""Workloads that ask what grows: cost of a step with a run's length and with what is stored, memory, workers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from infra.bench.bench import Bench
from infra.bench.load import Load
from infra.bench.measure import throughput
from infra.bench.memory import peak, resident_mebibytes
from infra.bench.platform import Chain, Platform
from infra.bench.role import NOOP
from infra.bench.stored_rows import COPIED_RUNS_MAX, store
from infra.bench.workloads import NODES

STEADY_FACTOR = 5


async def length(bench: Bench) -> None:
    """The same number of steps in flight, in runs of 10 nodes and in runs of very many."""
    options = bench.options
    in_flight = options.long_in_flight
    for _ in bench.repeats():
        await bench.quiesce()
        async with bench.platform.running():
            for nodes in (NODES, options.long_nodes):
                version = await bench.platform.create_workflow(nodes, NOOP)
                system = Chain(bench.platform, version, nodes)
                runs = in_flight if nodes > NODES else options.runs
                if nodes == NODES:
                    await system.load(bench.warm_up(in_flight))
                name = f"{nodes} nodes a run"
                measured, spent = await bench.measure(f"length, {name}", system, Load(in_flight, runs, options.seconds))
                bench.note("length", name, throughput(measured, spent, nodes))


async def stored(bench: Bench) -> None:
    """chain-10 on an almost empty database and on one with very many finished runs in it, in turns.

    Each page that is touched for the first time after a checkpoint goes to the log whole. A large database has
    more pages to touch, so right after a checkpoint a step costs more there: that is measured once, by itself, and
    a load follows that touches most of them before the turns begin.
    """
    options = bench.options
    names = [f"{rows:,} node runs stored".replace(",", " ") for rows in (0, options.stored_node_runs)]
    async with bench.fresh("stored_none") as empty, bench.fresh("stored_much") as full:
        async with _chain(bench, full) as system:
            copied = min(COPIED_RUNS_MAX, options.runs)
            await system.load(Load(copied, copied, options.seconds))
        await store(full, options.stored_node_runs)
        bench.repeat = 0
        async with _chain(bench, full) as system:
            await system.load(bench.warm_up(max(options.in_flight)))
            await bench.quiesce()
            await _measured(bench, system, full, f"{names[1]}, right after a checkpoint")
            for _ in range(STEADY_FACTOR):
                await system.load(_most(bench, options.seconds))
        for _ in bench.repeats():
            for name, platform in zip(names, (empty, full), strict=True):
                async with _chain(bench, platform) as system:
                    await system.load(_most(bench, options.seconds))
                    await _measured(bench, system, platform, name)
    if bench.profiler is not None:
        for line in bench.profiler.growth(*(f"stored, {name}" for name in names)):
            bench.say(line)


async def _measured(bench: Bench, system: Chain, platform: Platform, name: str) -> None:
    measured, spent = await bench.measure(f"stored, {name}", system, _most(bench, bench.options.seconds), platform)
    bench.note("stored", name, throughput(measured, spent, NODES))


@contextlib.asynccontextmanager
async def _chain(bench: Bench, platform: Platform) -> AsyncIterator[Chain]:
    """chain-10 on a fresh worker."""
    async with platform.running():
        yield Chain(platform, await platform.create_workflow(NODES, NOOP), NODES)


def _most(bench: Bench, seconds: float) -> Load:
    """The load with the most runs in flight, for so long."""
    return Load(max(bench.options.in_flight), bench.options.runs, seconds)


async def memory(bench: Bench) -> None:
    """A worker's resident memory: idle, and the most it had with very many runs in flight."""
    options = bench.options
    for _ in bench.repeats():
        async with bench.platform.running():
            version = await bench.platform.create_workflow(NODES, NOOP)
            worker = bench.platform.workers[0].pid
            system = Chain(bench.platform, version, NODES)
            await system.load(Load(1, 1, options.seconds))
            idle = resident_mebibytes(worker)
            async with peak(worker) as samples:
                measured = await system.load(Load(options.memory_runs, 2 * options.memory_runs, options.seconds))
            values = {
                "idle MiB": idle[0],
                "most MiB": max(own for own, _ in samples),
                "most with children MiB": max(own + children for own, children in samples),
                "runs": measured.runs,
            }
            bench.note("memory", f"{options.memory_runs} in flight", values)


async def workers(bench: Bench) -> None:
    """The same load on one worker process and on two: so many runs that one is saturated, then few.

    Two share the runs there are, so few make smaller batches, and those cost more a step whoever handles them.
    """
    options = bench.options
    few = 2 * max(options.in_flight)
    sizes = (("saturated", options.saturating), (f"{few} in flight", few))
    loads = [(count, size, in_flight) for size, in_flight in sizes for count in (1, 2)]
    for _ in bench.repeats():
        await bench.quiesce()  # Not before each: the pages that go to the log whole after it would be charged to one.
        loads.reverse()
        for count, size, in_flight in loads:
            async with bench.platform.running(count):
                version = await bench.platform.create_workflow(NODES, NOOP)
                await bench.platform.until_shared()
                system = Chain(bench.platform, version, NODES)
                await system.load(bench.warm_up(in_flight))
                name = f"{'1 worker' if count == 1 else f'{count} workers'}, {size}"
                load = Load(in_flight, options.runs, options.seconds)
                measured, spent = await bench.measure(f"workers, {name}", system, load)
            bench.note("workers", name, throughput(measured, spent, NODES))
