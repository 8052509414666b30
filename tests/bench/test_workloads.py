"""Every workload goes through on real servers and checks what it measures; no figure is judged."""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import AsyncIterator

import pytest

from infra.bench import peer
from infra.bench.bench import Bench, Options
from infra.bench.load import Load
from infra.bench.platform import BenchFailed, Chain, started
from infra.bench.role import NOOP
from infra.bench.runner import BY_NAME, missing
from infra.local.embedded import EmbeddedStack
from tests.live import settings_for

pytestmark = [pytest.mark.services, pytest.mark.slow]

TINY = Options(
    runs=6,
    in_flight=(4, 2),
    repeats=1,
    seconds=30.0,
    alone_runs=2,
    warm_up_seconds=0.1,
    cold_seconds=0.1,
    reads_in_flight=2,
    long_nodes=20,
    long_in_flight=2,
    stored_node_runs=500,
    memory_runs=4,
    saturating=16,
    rebuild_events=100,
    backlog_runs=20,
    noisy_runs=4,
)
LOADS = {
    "chain-10": {"4 in flight", "2 in flight", "alone"},
    "pure-10": {"4 in flight"},
    "http": {"one client", "2 clients"},
    "reads": {"2 clients"},
    "length": {"10 nodes a run", "20 nodes a run"},
    "stored": {
        "0 node runs stored",
        "500 node runs stored",
        "500 node runs stored, right after a checkpoint",
    },
    "rebuild": {"compared with the tables", "into other tables"},
    "backlog": {"20 runs queued"},
    "noisy": {"quiet tenant alone", "beside 4 runs of another"},
    "memory": {"4 in flight"},
    "workers": {
        "1 worker, saturated",
        "2 workers, saturated",
        "1 worker, 8 in flight",
        "2 workers, 8 in flight",
    },
    "take-over": {
        "start, none before",
        "kill -9 of the only one, a new one at once",
        "kill -9 of one of two",
    },
}


@contextlib.asynccontextmanager
async def bench(services: EmbeddedStack) -> AsyncIterator[Bench]:
    name = f"bench_{uuid.uuid4().hex[:8]}"
    await services.new_database(name)
    settings = settings_for(services, name, session_timeout_seconds=2)
    async with started(services, settings) as platform:
        yield Bench(settings, services, platform, TINY, lambda text: None)


@pytest.mark.parametrize("name", list(BY_NAME))
async def test_a_workload_gives_figures_for_each_of_its_loads(services: EmbeddedStack, name: str) -> None:
    async with bench(services) as under_way:
        await BY_NAME[name](under_way)
    assert {result.load for result in under_way.results} == LOADS[name]
    for result in under_way.results:
        assert result.workload == name
        assert all(math.isfinite(value) and value >= 0 for value in result.values.values()), result


async def test_a_run_that_lacks_node_runs_is_no_measurement(services: EmbeddedStack) -> None:
    async with bench(services) as under_way, under_way.platform.running():
        version = await under_way.platform.create_workflow(2, NOOP)
        with pytest.raises(BenchFailed, match="4 node runs are stored as completed, not 6"):
            await Chain(under_way.platform, version, nodes=3).load(Load(2, 2, 30.0))


async def test_a_worker_that_dies_ends_the_measurement(services: EmbeddedStack) -> None:
    async with bench(services) as under_way:
        platform = under_way.platform
        async with platform.running():
            version = await platform.create_workflow(2, NOOP)
            await Chain(platform, version, 2).load(Load(1, 1, 30.0))
            platform.workers[0].kill()
            with pytest.raises(BenchFailed, match="has ended"):
                await platform.run_once(version)


@pytest.mark.parametrize("name", ["dbos", "absurd_sdk", "langgraph", "procrastinate", "restate", "temporalio"])
async def test_a_peer_records_every_run_and_step(services: EmbeddedStack, name: str) -> None:
    pytest.importorskip(name)
    name = name.removesuffix("_sdk").removesuffix("io")
    lacking = missing(name)
    if lacking is not None:
        pytest.skip(lacking)
    async with peer.started(name, services) as other:
        measured = await other.load(Load(2, 3, 30.0))
        assert measured.runs == 3
        assert (await other.load(Load(1, 1, 30.0))).runs == 1


async def test_a_peer_that_does_not_start_is_reported(services: EmbeddedStack) -> None:
    with pytest.raises(BenchFailed, match="nobody ended"):
        async with peer.started("nobody", services):
            pass
