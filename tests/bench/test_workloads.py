"""A workload of the benchmark goes through on real servers and checks what it measures; no figure is judged."""

from __future__ import annotations

import math
import uuid

import pytest

from infra.bench.bench import Bench, Options
from infra.bench.load import Load
from infra.bench.platform import BenchFailed, Chain, started
from infra.bench.role import NOOP
from infra.bench.runner import BY_NAME
from infra.local.embedded import EmbeddedStack
from tests.live import settings_for
from tests.patience import patient

pytestmark = [pytest.mark.services, pytest.mark.platforms, pytest.mark.slow]

TINY = Options(
    runs=6, in_flight=(4, 2), repeats=1, seconds=patient(30), alone_runs=2, warm_up_seconds=0.1, cold_seconds=0.1
)


async def test_a_workload_gives_figures_and_counts_what_was_stored(services: EmbeddedStack) -> None:
    name = f"bench_{uuid.uuid4().hex[:8]}"
    await services.new_database(name)
    settings = settings_for(services, name)
    async with started(services, settings) as platform:
        bench = Bench(settings, services, platform, TINY, lambda text: None)
        await BY_NAME["chain-10"](bench)
        async with platform.running():
            version = await platform.create_workflow(2, NOOP)
            with pytest.raises(BenchFailed, match="4 node runs are stored as completed, not 6"):
                await Chain(platform, version, nodes=3).load(Load(2, 2, patient(30)))
    assert {result.load for result in bench.results} == {"4 in flight", "2 in flight", "alone"}
    for result in bench.results:
        assert result.workload == "chain-10"
        assert all(math.isfinite(value) and value >= 0 for value in result.values.values()), result
