"""A rolling restart of everything by SIGTERM under load: no request fails, no effect is repeated."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from infra.chaos.faults import NobodyThere, Victim
from infra.chaos.judge import DATABASE_ERRORS
from infra.chaos.scene import Conclusion, Scene, scene
from infra.chaos.workload import LONG_SECONDS
from infra.local.embedded.processes import free_port, is_alive, signal_process
from infra.local.supervisor import Say, answers_ready
from infra.settings import Settings, setting_name

PATIENCE_SECONDS = 90.0
RUNS_PER_SECOND = 10
EXPECTED = frozenset({"201", "202", "ConnectError", "commands acknowledged", "ingress acknowledged"})
"""Nothing else may be answered. Whom nobody answers at all goes to the other gateway: that is no failed request."""


@dataclass(slots=True)
class RollingReport:
    seed: int
    restarted: list[str] = field(default_factory=list)
    too_long: int = 0
    """Steps that take longer than a process that stops waits for them: these may be repeated."""
    conclusion: Conclusion = field(default_factory=Conclusion)

    @property
    def problems(self) -> list[str]:
        done = self.conclusion
        failed = {name: count for name, count in done.answers.items() if name not in EXPECTED}
        repeated = done.verdict.figures.get("steps repeated", 0) - self.too_long
        return [
            *done.problems,
            *([f"requests failed: {failed}"] if failed else []),
            *([f"{repeated} steps were repeated"] if repeated > 0 else []),
        ]

    def document(self) -> dict[str, Any]:
        document = self.conclusion.document()
        return document | {"restarted": self.restarted, "clean": not self.problems, "problems": self.problems}


async def rolling_test(settings: Settings, *, seed: int, rounds: int, say: Say) -> RollingReport:
    """Restart two gateways, two workers and an executor one by one, so many times."""
    report = RollingReport(seed)
    async with scene(settings, seed=seed, say=say) as stage:
        try:
            await _rounds(stage, report, rounds)
            report.conclusion = await stage.conclude()
        except Exception as error:
            report.conclusion = stage.broken_off(error)
    return report


async def _rounds(stage: Scene, report: RollingReport, rounds: int) -> None:
    ports = {"gateway-0": stage.settings.gateway_port, "gateway-1": free_port()}
    own = {
        setting_name("gateway_port"): str(ports["gateway-1"]),
        setting_name("gateway_instance"): "1",
    }
    await stage.stack.add("gateway", own)
    await _until(lambda: _answers(ports["gateway-1"]), "the second gateway is ready")
    stage.load.other_gateways.append(f"http://127.0.0.1:{ports['gateway-1']}")
    async with asyncio.TaskGroup() as group:
        stop = asyncio.Event()
        group.create_task(_load_until(stage, stop))
        for _ in range(rounds):
            for name in (*ports, "worker-0", "worker-1", "executor-0"):
                await _restart(stage, name, ports.get(name))
                report.restarted.append(name)
        stop.set()
    stage.calm()
    report.too_long = sum(it.inputs.get("seconds") == LONG_SECONDS for it in stage.load.taken.values())


async def _restart(stage: Scene, name: str, port: int | None) -> None:
    """SIGTERM; return once its successor does its work."""
    before = _victim(stage, name)
    signal_process(before.identity, signal.SIGTERM)
    await _until(lambda: _gone(before), f"{name} has stopped")
    await _until(lambda: _works(stage, name, before, port), f"{name} works again")
    await asyncio.sleep(1)


def _victim(stage: Scene, name: str) -> Victim:
    role, _, index = name.partition("-")
    if role == "gateway":
        return stage.faults.victim("gateway", int(index))
    return stage.faults.victim("worker" if role == "worker" else "executor", int(index))


async def _gone(victim: Victim) -> bool:
    return not is_alive(victim.identity)


async def _works(stage: Scene, name: str, before: Victim, port: int | None) -> bool:
    try:
        now = _victim(stage, name)
    except NobodyThere:
        return False
    if now.pid == before.pid:
        return False
    if port is not None:
        return await _answers(port)
    if now.role == "executor":
        return True
    database = await asyncpg.connect(stage.settings.required_database_url, timeout=5)
    try:
        owned = await database.fetchval("SELECT count(*) FROM lane WHERE owner LIKE $1", now.owner_pattern)
    finally:
        await database.close()
    return bool(owned)


async def _answers(port: int) -> bool:
    return await answers_ready("127.0.0.1", port)


async def _load_until(stage: Scene, stop: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        while not stop.is_set():
            group.create_task(stage.load.run(RUNS_PER_SECOND, 1))
            await asyncio.sleep(1)


async def _until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    if await condition():
                        return
                except DATABASE_ERRORS:
                    await asyncio.sleep(0.5)
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise TimeoutError(f"waited {PATIENCE_SECONDS:g} s for this: {what}") from None
