"""The workloads that systems are compared by: chains of durable no-op steps, and of pure nodes."""

from __future__ import annotations

from infra.bench import peer
from infra.bench.bench import Bench
from infra.bench.load import WITHOUT_END, Load
from infra.bench.measure import System, latency, throughput
from infra.bench.platform import Chain
from infra.bench.role import NOOP

NODES = 10
PURE = "template-transform"


async def heat(bench: Bench) -> None:
    """Load Kafka until its broker has compiled its hot paths, which takes it much longer than anything else here.

    On a database that is dropped: the log of so much work would bring on a checkpoint in the first measurement.
    """
    async with bench.fresh("cold") as platform, platform.running():
        version = await platform.create_workflow(NODES, NOOP)
        load = Load(max(bench.options.in_flight), WITHOUT_END, bench.options.cold_seconds)
        await Chain(platform, version, NODES).load(load)


async def chain_10(bench: Bench) -> None:
    """Runs of ten no-op steps, each durable before the next starts: many, few, and one in flight.

    The systems take turns within a repeat, each in fresh processes, so that a change of the machine's mood hits
    all of them.
    """
    for _ in bench.repeats():
        await bench.quiesce()
        async with bench.platform.running():
            version = await bench.platform.create_workflow(NODES, NOOP)
            await _chain_loads(bench, Chain(bench.platform, version, NODES))
        for name in bench.options.against:
            await bench.quiesce()
            async with peer.started(name, bench.stack) as other:
                await _chain_loads(bench, other)


async def _chain_loads(bench: Bench, system: System) -> None:
    options = bench.options
    await system.load(bench.warm_up(max(options.in_flight)))
    for in_flight in options.in_flight:
        name = f"{in_flight} in flight"
        load = Load(in_flight, options.runs, options.seconds)
        measured, spent = await bench.measure(f"chain-10, {name}", system, load)
        bench.note("chain-10", name, throughput(measured, spent, NODES), system.name)
    measured, _ = await bench.measure("chain-10, alone", system, Load(1, options.alone_runs, options.seconds))
    bench.note("chain-10", "alone", {**latency(measured), "runs": measured.runs}, system.name)


async def pure_10(bench: Bench) -> None:
    """Runs of ten template nodes: no effect, every node run recorded."""
    options = bench.options
    in_flight = max(options.in_flight)
    for _ in bench.repeats():
        await bench.quiesce()
        async with bench.platform.running():
            version = await bench.platform.create_workflow(NODES, PURE)
            system = Chain(bench.platform, version, NODES)
            await system.load(bench.warm_up(in_flight))
            name = f"{in_flight} in flight"
            load = Load(in_flight, options.runs, options.seconds)
            measured, spent = await bench.measure(f"pure-10, {name}", system, load)
            bench.note("pure-10", name, throughput(measured, spent, NODES, "node run"))
