"""Runs a whole benchmark: servers in a data folder, one workload after the other, everything stopped at the end."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from infra.bench import gateway_loads, growth, machine, take_over, workloads
from infra.bench.bench import Bench, Options, Report, Say
from infra.bench.catalogue import PEERS
from infra.bench.platform import BenchFailed, started
from infra.bench.profiler import Profiler, Statements
from infra.embedded import EmbeddedStack
from infra.settings import Settings

BY_NAME: Mapping[str, Callable[[Bench], Awaitable[None]]] = {
    "chain-10": workloads.chain_10,
    "pure-10": workloads.pure_10,
    "http": gateway_loads.http,
    "reads": gateway_loads.reads,
    "length": growth.length,
    "stored": growth.stored,
    "memory": growth.memory,
    "workers": growth.workers,
    "take-over": take_over.take_over,
}


async def run(names: Sequence[str], options: Options, settings: Settings, say: Say) -> Report:
    """Measure the named workloads. Raises BenchFailed or StackError; nothing runs then."""
    facts, versions = machine.facts(), installed(options.against)
    async with EmbeddedStack(
        settings.data_dir,
        full_jit=True,
        heap_megabytes=settings.embedded_kafka_heap_megabytes,
        cache_dir=settings.cache_dir,
    ) as stack:
        addresses = {
            "data_dir": stack.folder.path,
            "database_url": stack.database_url,
            "kafka_bootstrap": stack.kafka_bootstrap,
        }
        settings = settings.model_copy(update=addresses)
        profiler = None
        if options.profile:
            profiler = Profiler(Statements(stack), stack.folder.path / "profile")
            await profiler.statements.switch_on()
        async with started(stack, settings) as platform:
            bench = Bench(settings, stack, platform, options, say, profiler=profiler)
            for name in names:
                say(f"{name} ...")
                await BY_NAME[name](bench)
    return Report(facts, options, versions, bench.results)


def installed(names: Sequence[str]) -> Mapping[str, str]:
    """The versions of these peers. Raises BenchFailed naming what is missing."""
    found = {}
    for name in names:
        peer = PEERS[name]
        try:
            found[name] = version(peer.package)
        except PackageNotFoundError:
            raise BenchFailed(f"{name} needs the package {peer.package}: `make bench` installs it") from None
        if peer.program is not None and shutil.which(peer.program[0]) is None:
            raise BenchFailed(f"{name} needs {peer.program[0]} on the path: npm install --global {peer.program[1]}")
    return found
