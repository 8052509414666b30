"""Workloads that ask what grows: cost of a step with a run's length and with what is stored, memory, workers."""

from __future__ import annotations

from infra.bench.bench import Bench
from infra.bench.load import Load
from infra.bench.measure import throughput
from infra.bench.memory import peak, resident_mebibytes
from infra.bench.platform import Chain, Platform
from infra.bench.role import NOOP
from infra.bench.stored_rows import store
from infra.bench.workloads import NODES


async def length(bench: Bench) -> None:
    """The same number of steps in flight, in runs of 10 nodes and in runs of very many."""
    options = bench.options
    in_flight = options.long_in_flight
    for _ in bench.repeats():
        await bench.settle()
        async with bench.platform.running():
            for nodes in (NODES, options.long_nodes):
                version = await bench.platform.create_workflow(nodes, NOOP)
                system = Chain(bench.platform, version, nodes)
                runs = in_flight if nodes > NODES else options.runs
                if nodes == NODES:
                    await system.load(Load(in_flight, runs, bench.warm_up_seconds()))
                name = f"{nodes} nodes a run"
                measured, spent = await bench.measure(f"length, {name}", system, Load(in_flight, runs, options.seconds))
                bench.note("length", name, throughput(measured, spent, nodes))


async def stored(bench: Bench) -> None:
    """chain-10 on an almost empty database and on one with very many finished runs in it, in turns.

    No checkpoint right before a measurement: each page that is then touched for the first time goes to the log
    whole, which would charge the first seconds after a checkpoint to every step.
    """
    options = bench.options
    sizes = (0, options.stored_node_runs)
    async with bench.fresh("stored_none") as empty, bench.fresh("stored_much") as full:
        await _one_after(bench, full, 0, note=False)
        await store(full, options.stored_node_runs)
        await bench.settle()
        await _one_after(bench, full, options.stored_node_runs, note=False)
        for _ in bench.repeats():
            for platform, rows in zip((empty, full), sizes, strict=True):
                await _one_after(bench, platform, rows)
    if bench.profiler is not None:
        for line in bench.profiler.growth(*(f"stored, {_stored_name(rows)}" for rows in sizes)):
            bench.say(line)


async def _one_after(bench: Bench, platform: Platform, rows: int, *, note: bool = True) -> None:
    """Measure chain-10 on a fresh worker; without `note` just put that load on."""
    options, name = bench.options, _stored_name(rows)
    in_flight = max(options.in_flight)
    async with platform.running():
        version = await platform.create_workflow(NODES, NOOP)
        system = Chain(platform, version, NODES)
        load = Load(in_flight, options.runs, options.seconds)
        await system.load(Load(in_flight, options.runs, max(options.seconds, bench.warm_up_seconds())))
        if note:
            measured, spent = await bench.measure(f"stored, {name}", system, load, platform)
            bench.note("stored", name, throughput(measured, spent, NODES))


def _stored_name(rows: int) -> str:
    return f"{rows:,} node runs stored".replace(",", " ")


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
    """The same load on one worker process and on two."""
    options = bench.options
    in_flight = 2 * max(options.in_flight)
    for _ in bench.repeats():
        for count in (1, 2):
            await bench.settle()
            async with bench.platform.running(count):
                version = await bench.platform.create_workflow(NODES, NOOP)
                await bench.platform.until_shared()
                system = Chain(bench.platform, version, NODES)
                await system.load(Load(in_flight, options.runs, bench.warm_up_seconds()))
                name = f"{'1 worker' if count == 1 else f'{count} workers'}, {in_flight} in flight"
                load = Load(in_flight, options.runs, options.seconds)
                measured, spent = await bench.measure(f"workers, {name}", system, load)
            bench.note("workers", name, throughput(measured, spent, NODES))
