"""The role processes of chaos runs: the real ones, with a tool that leaves a trace and places to stop or die at."""

from __future__ import annotations

import asyncio
import os
import sys

from handlers.steps.port import StepCall, StepFailed, StepResult
from infra.chaos.book import Book
from infra.chaos.disarmed import OFF_VARIABLE, Disarmed
from infra.chaos.places import PlacedBus, PlacedLog, PlacedStore, Places
from infra.roles.executor import run_executor
from infra.roles.extras import Extras
from infra.roles.gateway import run_gateway
from infra.roles.worker import run_worker
from infra.settings import Settings, load_settings
from infra.telemetry import logs

STEPS_AT_ONCE = 6
"""Of a worker: few, so that executors and spare capacity have their share."""


class Effects:
    """The tool `effect`: notes its idempotency key in the book, takes its time, and fails as its body says.

    Body: `seconds` to take; `fails` = how many attempts fail (a retry may help), -1 = all do (none helps);
    `owner`: to whom it belongs.
    """

    def __init__(self, book: Book) -> None:
        self._book = book

    async def perform(self, call: StepCall) -> StepResult:
        body = call.input.get("body") or {}
        owner = str(body.get("owner") or "")
        self._book.note(call, owner)
        await asyncio.sleep(float(body.get("seconds") or 0))
        fails = int(body.get("fails") or 0)
        if fails < 0 or call.attempt <= fails:
            raise StepFailed("made_to_fail", f"attempt {call.attempt}", retryable=fails >= 0)
        return StepResult({"effect": call.node_run_id, "attempt": call.attempt, "owner": owner})


def extras(settings: Settings) -> Extras:
    places = Places(settings.data_dir)
    disarmed = Disarmed.of(os.environ.get(OFF_VARIABLE, ""), settings)
    return Extras(
        performers={"tool": Effects(Book(settings.data_dir)).perform},
        store=lambda store: PlacedStore(disarmed.store(store), places),
        log=lambda log: PlacedLog(disarmed.log(log), places),
        bus=lambda bus: PlacedBus(disarmed.bus(bus), places),
        defences=disarmed.defences,
    )


async def run(role: str) -> None:
    settings = load_settings()
    logs.start(settings, role)
    match role:
        case "worker":
            few = settings.model_copy(update={"step_concurrency": STEPS_AT_ONCE})
            await run_worker(few, extras(settings))
        case "executor":
            await run_executor(settings, extras(settings))
        case "gateway":
            await run_gateway(settings, extras(settings))
        case _:
            raise SystemExit(f"there is no role {role!r}")


if __name__ == "__main__":
    import uvloop

    uvloop.run(run(sys.argv[1]))
