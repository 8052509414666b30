"""Runs a whole benchmark: servers in a data folder, one workload after the other, everything stopped at the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from infra.bench import backlog, gateway_loads, growth, machine, rebuilding, take_over, workloads
from infra.bench.bench import Bench, Options, Report, Say
from infra.bench.catalogue import PEERS
from infra.bench.peers import Peer, find_program
from infra.bench.platform import BenchFailed, started
from infra.bench.profiler import Profiler, Statements
from infra.local.embedded import EmbeddedStack
from infra.local.embedded.processes import run_tool
from infra.settings import Settings

BY_NAME: Mapping[str, Callable[[Bench], Awaitable[None]]] = {
    "chain-10": workloads.chain_10,
    "pure-10": workloads.pure_10,
    "http": gateway_loads.http,
    "reads": gateway_loads.reads,
    "length": growth.length,
    "stored": growth.stored,
    "rebuild": rebuilding.rebuild,
    "backlog": backlog.backlog,
    "noisy": backlog.noisy,
    "memory": growth.memory,
    "workers": growth.workers,
    "take-over": take_over.take_over,
}


async def run(names: Sequence[str], options: Options, settings: Settings, say: Say) -> Report:
    """Measure the named workloads. Raises BenchFailed or StackError; nothing runs then."""
    facts, versions = machine.facts(), installed(options.against)
    if not names:
        return Report(facts, options, versions, [])
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
            say("warming up ...")
            await workloads.heat(bench)
            for name in names:
                say(f"{name} ...")
                await BY_NAME[name](bench)
    return Report(facts, options, versions, bench.results)


def installed(names: Sequence[str]) -> Mapping[str, str]:
    """The versions of these peers. Raises BenchFailed naming what is missing."""
    for name in names:
        lacking = missing(name)
        if lacking is not None:
            raise BenchFailed(lacking)
    return {name: _version(PEERS[name]) for name in names}


def _version(peer: Peer) -> str:
    """Of the package, and of the server that it talks to."""
    program = None if peer.program is None else find_program(peer.program)
    if program is None:
        return version(peer.package)
    said = run_tool([program, "--version"], what=f"{peer.program} --version").strip().splitlines()[0]
    return f"{version(peer.package)} with {said.removeprefix(f'{peer.program} ')}"


def missing(name: str) -> str | None:
    """What a peer needs and is not there, and how to get it."""
    peer = PEERS[name]
    try:
        version(peer.package)
    except PackageNotFoundError:
        return f"{name} needs the package {peer.package}: `make bench` installs it"
    if peer.program is not None and find_program(peer.program) is None:
        return f"{name} needs {peer.program} on the path: {peer.program_from}"
    return None
