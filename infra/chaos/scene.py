"""One chaos run: a stack of real processes, a load on it, and the conclusion once it has healed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bus.producer import Producer
from infra.chaos.faults import Faults
from infra.chaos.judge import Verdict, heal, judge
from infra.chaos.load import Load
from infra.chaos.workload import VIAS
from infra.settings import Settings
from infra.stack import Say, Supervisor
from infra.verify import verify

EXAMPLES_MAX = 20
GIVEN_UP_SHARE_MAX = 0.02
"""A step whose holder died five times fails by design; whoever kills this often must see little of it."""


@dataclass(slots=True)
class Conclusion:
    """What became of everything. `problems` is empty if nothing was lost, doubled, stuck or answered wrongly."""

    problems: list[str] = field(default_factory=list)
    accepted: int = 0
    heal_seconds: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    invariants: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return {
            "clean": not self.problems,
            "problems": self.problems,
            "runs accepted": self.accepted,
            "answers": self.answers,
            "heal seconds": round(self.heal_seconds, 1),
            "figures": self.verdict.figures,
            "violations": self.verdict.violations,
            "invariants": self.invariants,
        }


@dataclass(slots=True)
class Scene:
    """A running stack. `settings` hold the addresses of its servers."""

    settings: Settings
    stack: Supervisor
    faults: Faults
    load: Load
    say: Say

    async def conclude(self) -> Conclusion:
        """Wait until everything is at rest, then judge; the load must have ended."""
        settings, load = self.settings, self.load
        url, bootstrap = settings.required_database_url, settings.required_kafka_bootstrap
        self.say(f"{len(load.taken)} runs accepted; healing ...")
        began = time.monotonic()
        left = await heal(url, bootstrap, settings.topic_prefix)
        done = Conclusion(accepted=len(load.taken), heal_seconds=time.monotonic() - began, answers=dict(load.answers))
        done.verdict = await judge(url, settings.data_dir, load.taken, self.faults.hit)
        found = await verify(url, bootstrap, settings.topic_prefix, lease_seconds=settings.lease_seconds)
        done.invariants = found.document()
        if done.verdict.figures["runs given up after lost leases"] > GIVEN_UP_SHARE_MAX * len(load.taken):
            done.problems.append(f"too many runs given up: {done.verdict.figures}")
        if left:
            done.problems.append(f"did not come to rest: {left}")
        if len(load.taken) != load.started:
            done.problems.append(f"{len(load.taken)} of {load.started} runs were accepted")
        done.problems += [f"wrong answer: {answer}" for answer in load.wrong[:EXAMPLES_MAX]]
        done.problems += _with_example(done.verdict.counts, done.verdict.violations)
        done.problems += _with_example(found.found, found.violations)
        return done


def _with_example(counts: Counter[str], examples: dict[str, list[str]]) -> list[str]:
    return [f"{kind}: {count}, the first: {examples[kind][0]}" for kind, count in counts.items()]


@contextlib.asynccontextmanager
async def scene(
    settings: Settings,
    *,
    seed: int,
    say: Say,
    workers: int = 2,
    executors: int = 1,
    vias: Sequence[str] = VIAS,
) -> AsyncIterator[Scene]:
    """Start a stack of chaos roles on `settings.data_dir`; whatever it started has stopped when the block is left."""
    stack = Supervisor(
        settings,
        workers=workers,
        executors=executors,
        say=say,
        role_module="infra.chaos.roles",
        healthy_seconds=5.0,
    )
    url = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def hold(address: str) -> None:
        url.set_result(address)
        await done.wait()

    running = asyncio.create_task(stack.run(once_ready=hold))
    waiting: set[asyncio.Future[Any]] = {url, running}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    try:
        if running.done():
            await running
            raise RuntimeError("the stack stopped before it was ready")
        async with _loaded(stack, url.result(), seed, vias, say) as it:
            yield it
    finally:
        done.set()
        await running


@contextlib.asynccontextmanager
async def _loaded(stack: Supervisor, url: str, seed: int, vias: Sequence[str], say: Say) -> AsyncIterator[Scene]:
    settings = stack.settings
    producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix, timeout_seconds=5.0)
    await producer.start()
    try:
        load = Load(url, producer, seed, settings.commands_partitions, settings.ingress_partitions, tuple(vias))
        await load.prepare()
        yield Scene(settings, stack, Faults(Path(settings.data_dir)), load, say)
    finally:
        await producer.stop()
