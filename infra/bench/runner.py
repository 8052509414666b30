"""Runs a whole benchmark: servers in a folder, the workloads one after the other, everything stopped at the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from infra.bench import gateway_loads, growth, machine, take_over, workloads
from infra.bench.bench import Bench, Options, Report, Say
from infra.bench.catalogue import PEERS
from infra.bench.platform import started
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


async def run(names: Sequence[str], options: Options, settings: Settings, folder: Path, say: Say) -> Report:
    """Measure the named workloads. Raises BenchFailed or StackError; nothing runs then."""
    facts = machine.facts()
    async with EmbeddedStack(
        folder,
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
        async with started(stack, settings) as platform:
            bench = Bench(settings, stack, platform, options, say)
            for name in names:
                say(f"{name} ...")
                await BY_NAME[name](bench)
    versions = {name: version(PEERS[name].package) for name in options.against}
    return Report(facts, options, versions, bench.results)
