"""One chaos run: a stack of real processes, a load on it, and the conclusion once it has healed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from bus.producer import Producer
from infra.chaos import autopsy, book, tenants
from infra.chaos.disarmed import OFF_VARIABLE
from infra.chaos.faults import Faults
from infra.chaos.judge import HEAL_SECONDS_MAX, Asked, Verdict, heal, judge
from infra.chaos.load import Load
from infra.chaos.proxy import Proxy
from infra.chaos.workload import VIAS
from infra.history.rebuild import rebuild
from infra.history.verify import Report, verify
from infra.local.embedded.failures import StackError
from infra.local.embedded.processes import free_port
from infra.local.supervisor import Say, Supervisor
from infra.settings import Settings

EXAMPLES_MAX = 20
GIVEN_UP_SHARE_MAX = 0.02
"""A step whose holder died five times fails by design; whoever kills this often must see little of it."""
PROGRESS_MIN = 0.9
"""Of the runs offered while faults struck, so many must have ended before the last one: else it was an outage."""
PROGRESS_SECONDS_MIN = 60.0
"""Of faults that were planned: in less time one outage, as wanted as any, decides over the share."""
DUE_SECONDS = 30.0
"""Runs offered later than this before the faults ended need not have ended with them."""


@dataclass(slots=True)
class Conclusion:
    """What became of everything. `problems` is empty if nothing was lost, doubled, stuck or answered wrongly."""

    problems: list[str] = field(default_factory=list)
    accepted: int = 0
    offered: int = 0
    due: int = 0
    done: int = 0
    """Of the runs due when the faults ended, those that had ended."""
    heal_seconds: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    invariants: dict[str, Any] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        return self.done / self.due if self.due else 1.0

    @property
    def summary(self) -> str:
        return (
            f"{self.progress:.1%} of {self.due} runs ended under faults, all {self.accepted} within"
            f" {self.heal_seconds:.0f} s after them; {len(self.problems)} problems"
        )

    @property
    def observed(self) -> Counter[str]:
        """What was seen to come of the faults."""
        figures, checked = self.verdict.figures, self.invariants.get("checked", {})
        return Counter({
            "runs ended": figures.get("runs", 0),
            "effects": figures.get("effects", 0),
            "effects repeated after a lost lease or for a retry": figures.get("effects repeated", 0),
            "leases lost": figures.get("steps repeated", 0),
            "lanes claimed": figures.get("lanes claimed", 0),
            "events sent twice": checked.get("events records", 0) - checked.get("events", 0),
            "dead letters": checked.get("dead letters", 0),
            "requests refused with 503": self.answers.get("503", 0),
            "requests without an answer": sum(n for name, n in self.answers.items() if name.endswith("Error")),
        })  # fmt: skip

    def document(self) -> dict[str, Any]:
        return {
            "clean": not self.problems,
            "problems": self.problems,
            "runs offered": self.offered,
            "runs accepted": self.accepted,
            "progress under faults": {"due": self.due, "done": self.done, "share": round(self.progress, 3)},
            "answers": self.answers,
            "heal seconds": round(self.heal_seconds, 1),
            "figures": self.verdict.figures,
            "violations": self.verdict.violations,
            "invariants": self.invariants,
        }


@dataclass(slots=True)
class Scene:
    """A running stack. `settings` hold the addresses of its servers, `kafka` and `postgres` stand before them."""

    settings: Settings
    stack: Supervisor
    faults: Faults
    load: Load
    say: Say
    kafka: Proxy | None = None
    postgres: Proxy | None = None
    calm_at: float = 0.0
    """When the faults ended, seconds since 1970."""

    def calm(self) -> None:
        """The faults are over: what was offered until now is what progress is measured by."""
        self.calm_at = time.time()

    async def conclude(self, heal_seconds: float = HEAL_SECONDS_MAX, *, progress: bool | None = None) -> Conclusion:
        """Wait until everything is at rest, then judge; the load must have ended.

        `progress`: whether to judge that as well, by what was planned: on a slow machine all takes longer. None: if
        there were faults for long enough.
        """
        settings, load = self.settings, self.load
        url, bootstrap = settings.required_database_url, settings.required_kafka_bootstrap
        self.calm_at = self.calm_at or time.time()
        self.say(f"{len(load.taken)} of {load.started} runs accepted; healing ...")
        began = time.monotonic()
        left = await heal(url, bootstrap, settings.topic_prefix, heal_seconds)
        done = Conclusion(accepted=len(load.taken), offered=load.started, answers=dict(load.answers))
        done.heal_seconds = time.monotonic() - began
        happened = len(book.effects(settings.data_dir))
        asked = Asked(load.taken, load.poisoned, self.faults.hit, settings.lease_seconds)
        done.verdict = await judge(url, settings.data_dir, asked)
        found = await verify(url, bootstrap, settings.topic_prefix, lease_seconds=settings.lease_seconds)
        await self._check_tenants(done.verdict)
        rebuilt = await rebuild(url, check=True)
        if not rebuilt.equal:
            done.verdict.add("rebuild that differs", f"{dict(rebuilt.different)} {rebuilt.unfoldable}")
        done.invariants = found.document()
        await self._measure_progress(done)
        self._problems(done, found, left, len(book.effects(settings.data_dir)) - happened)
        wanted = self._window_seconds >= PROGRESS_SECONDS_MIN if progress is None else progress
        if wanted and done.progress < PROGRESS_MIN:
            share = f"{done.done} of {done.due} runs that were due had ended when the faults ended"
            done.problems.append(f"too little progress: {share}, {PROGRESS_MIN:.0%} are wanted")
        return done

    def broken_off(self, error: Exception) -> Conclusion:
        """The conclusion where there can be none: neither faults nor a busy host may end a run without a word."""
        load = self.load
        done = Conclusion(accepted=len(load.taken), offered=load.started, answers=dict(load.answers))
        self.calm_at = self.calm_at or time.time()
        done.problems += [f"broken off: {each}" for each in autopsy.errors(error)]
        done.problems += [f"then: {each}" for each in autopsy.processes(self.settings.data_dir)]
        return done

    async def _check_tenants(self, verdict: Verdict) -> None:
        settings, figures = self.settings, verdict.figures
        figures["records that bear their tenant's mark"] = await tenants.check_records(
            settings.required_kafka_bootstrap, settings.topic_prefix, verdict.add
        )
        figures["lines logged"] = tenants.check_logs(settings.data_dir, verdict.add)
        if self.load.taken and not (figures["rows that bear their tenant's mark"] and figures["lines logged"]):
            verdict.add("nothing to tell tenants by", str(figures))

    @property
    def _window_seconds(self) -> float:
        return self.calm_at - min(self.load.offered.values(), default=self.calm_at)

    async def _measure_progress(self, done: Conclusion) -> None:
        until = self.calm_at - min(DUE_SECONDS, self._window_seconds / 2)
        due = {id for id, it in self.load.taken.items() if self.load.offered[it.number] <= until}
        done.due = sum(at <= until for at in self.load.offered.values())
        database = await asyncpg.connect(self.settings.required_database_url)
        try:
            done.done = await database.fetchval(
                "SELECT count(*) FROM run WHERE id = ANY($1::uuid[]) AND ended_at <= $2", sorted(due), self.calm_at
            )
        finally:
            await database.close()

    def _problems(self, done: Conclusion, found: Report, left: dict[str, Any], effects: int) -> None:
        load = self.load
        if done.verdict.figures["runs given up after lost leases"] > GIVEN_UP_SHARE_MAX * len(load.taken):
            done.problems.append(f"too many runs given up: {done.verdict.figures}")
        if left:
            done.problems.append(f"did not come to rest: {left}")
        if len(load.taken) != load.started:
            done.problems.append(f"{len(load.taken)} of {load.started} runs were accepted")
        if effects and not left:
            done.problems.append(f"I13: verifying and rebuilding performed {effects} effects")
        done.problems += [f"wrong answer: {answer}" for answer in load.wrong[:EXAMPLES_MAX]]
        done.problems += _with_example(done.verdict.counts, done.verdict.violations)
        done.problems += _with_example(found.found, found.violations)


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
    off: str = "",
) -> AsyncIterator[Scene]:
    """Start a stack of chaos roles on `settings.data_dir`; whatever it started has stopped when the block is left.

    `off`: names of defences that its roles are to do without.
    """
    embedded = settings.database_url is None and settings.kafka_bootstrap is None
    kafka = Proxy(free_port(), lambda: stack.port_of("kafka"))
    postgres = Proxy(free_port([kafka.port]), lambda: stack.port_of("postgres"))
    stack = Supervisor(
        settings,
        workers=workers,
        executors=executors,
        say=say,
        role_module="infra.chaos.roles",
        healthy_seconds=5.0,
        fronts={"kafka": kafka.port, "postgres": postgres.port} if embedded else None,
    )
    async with (
        _listening(*((kafka, postgres) if embedded else ())),
        _running(stack, off) as url,
        _loaded(stack, url, seed, vias, say) as it,
    ):
        if embedded:
            it.kafka, it.postgres = kafka, postgres
        yield it


@contextlib.asynccontextmanager
async def _listening(*proxies: Proxy) -> AsyncIterator[None]:
    for proxy in proxies:
        await proxy.start()
    try:
        yield
    finally:
        for proxy in proxies:
            await proxy.stop()


@contextlib.asynccontextmanager
async def _running(stack: Supervisor, off: str) -> AsyncIterator[str]:
    """The stack once it is ready: the gateway's address. Raises StackError when somebody asks it to stop meanwhile."""
    url = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def hold(address: str) -> None:
        url.set_result(address)
        await done.wait()

    os.environ[OFF_VARIABLE] = off  # Roles inherit it.
    running = asyncio.create_task(stack.run(once_ready=hold))
    waiting: set[asyncio.Future[Any]] = {url, running}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    inside = asyncio.current_task()
    assert inside is not None

    def leave(_: asyncio.Task[None]) -> None:
        if not done.is_set():
            inside.cancel()

    try:
        if running.done():
            await running
            raise RuntimeError("the stack stopped before it was ready")
        running.add_done_callback(leave)  # Else faults and load would go on against servers that have gone.
        yield url.result()
    except asyncio.CancelledError:
        if not running.done():
            raise
        inside.uncancel()
        raise StackError("stopped before its end", "nothing runs any more, and nothing was judged") from None
    finally:
        os.environ.pop(OFF_VARIABLE, None)
        done.set()
        await running


@contextlib.asynccontextmanager
async def _loaded(stack: Supervisor, url: str, seed: int, vias: Sequence[str], say: Say) -> AsyncIterator[Scene]:
    settings = stack.settings
    producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix, timeout_seconds=5.0)
    await producer.start()
    try:
        load = Load(url, producer, seed, settings, tuple(vias))
        await load.prepare()
        yield Scene(settings, stack, Faults(Path(settings.data_dir)), load, say)
    finally:
        await producer.stop()
