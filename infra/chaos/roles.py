"""The role processes of chaos runs: the real ones, with a tool that leaves a trace and places to stop at."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bus.store import Out, Writes
from handlers.steps.port import StepCall, StepFailed, StepResult
from infra import main
from infra.settings import Settings, load_settings

EFFECTS = "effects.log"
BEFORE_COMMIT = "before-commit"
BEFORE_SEND = "before-send"
STEPS_AT_ONCE = 6
"""Of a worker: few, so that executors and spare capacity have their share."""


class Effects:
    """The tool `effect`: notes its idempotency key, takes its time, and fails as its body says.

    Body: `seconds` to take; `fails` = how many attempts fail (a retry may help), -1 = all do (none helps).
    """

    def __init__(self, folder: Path) -> None:
        self._log = os.open(folder / EFFECTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    async def perform(self, call: StepCall) -> StepResult:
        os.write(self._log, f"{call.node_run_id} {call.attempt} {os.getpid()}\n".encode())
        body = call.input.get("body") or {}
        await asyncio.sleep(float(body.get("seconds") or 0))
        fails = int(body.get("fails") or 0)
        if fails < 0 or call.attempt <= fails:
            raise StepFailed("made_to_fail", f"attempt {call.attempt}", retryable=fails >= 0)
        return StepResult({"effect": call.node_run_id, "attempt": call.attempt})


class Stops:
    """Stops this process (SIGSTOP) at a named place when somebody has asked for it by a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def wanted(self, place: str) -> bool:
        return stop_wish(self._folder, os.getpid(), place).exists()

    def at(self, place: str) -> None:
        if self.wanted(place):
            stop_wish(self._folder, os.getpid(), place).unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGSTOP)


def stop_wish(folder: Path, pid: int, place: str) -> Path:
    """The file that asks a role process to stop at a place."""
    return folder / f"stop-{pid}-{place}"


class StoppingStore:
    """A store whose transactions may be stopped after their last statement and before COMMIT."""

    def __init__(self, inner: Any, stops: Stops) -> None:
        self._inner = inner
        self._stops = stops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Any]:
        async with self._inner.unit() as unit:
            yield unit
            self._stops.at(BEFORE_COMMIT)

    async def write(self, writes: Writes) -> None:
        if not self._stops.wanted(BEFORE_COMMIT):
            await self._inner.write(writes)
            return
        async with self.unit() as unit:  # One statement leaves no place to stop at.
            await unit.save(writes)


class StoppingLog:
    """A log that may be stopped before it sends what was committed."""

    def __init__(self, inner: Any, stops: Stops) -> None:
        self._inner = inner
        self._stops = stops

    def enqueue(self, records: Sequence[Out], *, urgent: bool = True) -> asyncio.Future[None]:
        self._stops.at(BEFORE_SEND)
        sending: asyncio.Future[None] = self._inner.enqueue(records, urgent=urgent)
        return sending

    async def publish(self, records: Sequence[Out]) -> None:
        self._stops.at(BEFORE_SEND)
        await self._inner.publish(records)


def extras(settings: Settings) -> main.Extras:
    stops = Stops(settings.data_dir)
    return main.Extras(
        performers={"tool": Effects(settings.data_dir).perform},
        store=lambda store: StoppingStore(store, stops),
        log=lambda log: StoppingLog(log, stops),
    )


async def run(role: str) -> None:
    settings = load_settings()
    match role:
        case "worker":
            few = settings.model_copy(update={"step_concurrency": STEPS_AT_ONCE})
            await main.run_worker(few, extras(settings))
        case "executor":
            await main.run_executor(settings, extras(settings))
        case "gateway":
            await main.run_gateway(settings)
        case _:
            raise SystemExit(f"there is no role {role!r}")


if __name__ == "__main__":
    import logging

    import uvloop

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    uvloop.run(run(sys.argv[1]))
