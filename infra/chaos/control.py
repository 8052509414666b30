"""The control arms: one defence is turned off, its fault strikes, and the check that guards it must find out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import asyncpg

from infra.chaos import poison, repeats
from infra.chaos.disarmed import ACKNOWLEDGEMENT, FAILING_SENDS
from infra.chaos.faults import NobodyThere, Victim, is_stopped
from infra.chaos.judge import DATABASE_ERRORS
from infra.chaos.places import BEFORE_ANSWER, BEFORE_REPLY, BEFORE_SEND
from infra.chaos.scene import Conclusion, Scene, scene
from infra.escaping import escaped
from infra.local.embedded.processes import is_alive
from infra.local.supervisor import Say
from infra.settings import Settings
from schemas.envelope import Envelope
from schemas.messages import derive
from schemas.runtime import CompleteNode
from schemas.topics import COMMANDS, partition_of

RUNS, SECONDS = 120, 12.0
HEAL_SECONDS = 30.0
"""Without a defence many never end."""
TAKEN_SECONDS = 60.0
PATIENCE_SECONDS = 60.0
ZOMBIES = 3
ZOMBIE_LEASE_SECONDS = 40.0
"""Longer than a worker stands still: what it knows of its steps, nobody else finds out meanwhile."""


@dataclass(frozen=True, slots=True)
class Arm:
    """`off`: what its role processes do without. `strike`: the fault its defence is there for, under load.

    `notices`: how the problems begin one of which must be found. `keys` false: clients send no Idempotency-Key.
    `lease_seconds`: of its role processes, if the fault wants other ones. `tries`: runs, until one is noticed, for a
    fault that may strike where it does no harm.
    """

    defence: str
    off: str
    strike: Callable[[Scene], Awaitable[None]]
    notices: tuple[str, ...]
    keys: bool = True
    lease_seconds: float | None = None
    tries: int = 1


@dataclass(slots=True)
class ControlReport:
    """`red`: by defence, the problem that its check found without it. `green`: arms that nobody noticed."""

    red: dict[str, str] = field(default_factory=dict)
    green: dict[str, list[str]] = field(default_factory=dict)
    armed: list[str] | None = None
    """Problems found with all defences on, under the same faults."""

    @property
    def passed(self) -> bool:
        return not self.green and not self.armed

    def table(self) -> str:
        lines = [f"{name:<16} red    {problem[:150]}" for name, problem in self.red.items()]
        lines += [f"{name:<16} GREEN  found only: {others}"[:300] for name, others in self.green.items()]
        if self.armed is not None:
            lines.append(f"{'all defences on':<16} {'RED    ' + str(self.armed) if self.armed else 'clean'}")
        return "\n".join(map(escaped, lines))

    def document(self) -> dict[str, Any]:
        return {"passed": self.passed, "red": self.red, "green": self.green, "armed": self.armed}


async def control_test(
    settings: Callable[[str], Settings], names: Sequence[str], *, seed: int, say: Say
) -> ControlReport:
    """Run these arms, and once all their faults with every defence on. `settings(name)`: for a stack of its own."""
    report = ControlReport()
    arms = [ARMS[name] for name in names]
    for arm in arms:
        for number in range(1, arm.tries + 1):
            name = arm.defence if number == 1 else f"{arm.defence} {number}"
            done = await without(settings(name), arm, seed=seed + number - 1, say=say)
            found = [problem for problem in done.problems if problem.startswith(arm.notices)]
            say(f"without {arm.defence}: {'red, ' + found[0][:200] if found else 'nobody noticed'}")
            if found:
                report.red[arm.defence] = found[0]
                report.green.pop(arm.defence, None)
                break
            report.green[arm.defence] = done.problems
    report.armed = (await with_all(settings("armed"), arms, seed=seed, say=say)).problems
    return report


async def without(settings: Settings, arm: Arm, *, seed: int, say: Say) -> Conclusion:
    """A short run without one defence."""
    say(f"without {arm.defence} ...")
    if arm.lease_seconds is not None:
        settings = settings.model_copy(update={"lease_seconds": arm.lease_seconds})
    async with scene(settings, seed=seed, say=_nothing, off=arm.off) as stage:
        stage.load.keys = arm.keys
        return await _struck(stage, [arm], HEAL_SECONDS, progress=arm.strike is stand_still)


async def with_all(settings: Settings, arms: Sequence[Arm], *, seed: int, say: Say) -> Conclusion:
    """A run with every defence under the faults of all these arms: it must be clean."""
    say("with all defences, under the faults of all arms ...")
    async with scene(settings, seed=seed, say=_nothing, off=FAILING_SENDS) as stage:
        return await _struck(stage, [arm for arm in arms if arm.strike is not stand_still], 180.0)


async def _struck(stage: Scene, arms: Sequence[Arm], heal_seconds: float, *, progress: bool = False) -> Conclusion:
    async with asyncio.TaskGroup() as group:
        stop = asyncio.Event()
        load = group.create_task(_load_until(stage, stop))
        for arm in arms:
            await _until(lambda: len(stage.load.taken) > RUNS // 10, "runs are taken")
            await arm.strike(stage)
        stop.set()
        stage.calm()
        with contextlib.suppress(TimeoutError):  # The conclusion counts what nobody took.
            await asyncio.wait_for(load, TAKEN_SECONDS)
    return await stage.conclude(heal_seconds, progress=progress)


async def _load_until(stage: Scene, stop: asyncio.Event) -> None:
    """A steady load: at least RUNS, and until `stop`."""
    async with asyncio.TaskGroup() as group:
        while stage.load.started < RUNS or not stop.is_set():
            group.create_task(stage.load.run(5, 5 * SECONDS / RUNS))
            await asyncio.sleep(5 * SECONDS / RUNS)


# --- the faults ----------------------------------------------------------------------------------------------


async def repeat_everything(stage: Scene) -> None:
    """Every record of the consumed topics comes again."""
    await asyncio.sleep(5)
    await repeats.everything(stage.settings)


async def zombie(stage: Scene) -> None:
    """A worker stands still with a decided batch in hand until another one has gone on, then writes it.

    Several times: if the other one has heard of the answer all the same, the keys of rows refuse what is stale.
    """
    for _ in range(ZOMBIES):
        await _one_zombie(stage)
        await asyncio.sleep(1)


async def _one_zombie(stage: Scene) -> None:
    victim = await _with_lanes(stage)
    other = stage.faults.victim("worker", 1 - victim.index)
    stage.faults.stop_at(victim, BEFORE_ANSWER)
    await _until(lambda: is_stopped(victim), "a worker stands still")
    try:
        await _until(lambda: _holds_all(stage, other), "the other one has all lanes")
        taken = len(stage.load.taken)
        await _until(lambda: len(stage.load.taken) > taken + 20, "runs are taken meanwhile")
    finally:
        stage.faults.go_on(victim)


async def die_before_sending(stage: Scene) -> None:
    """A worker dies with a committed batch that it has not sent; nobody may forget it."""
    for _ in range(3):
        await _die_at(stage, await _with_lanes(stage), BEFORE_SEND)


async def answer_late(stage: Scene) -> None:
    """A worker dies with steps in hand; when others have taken them over, its answers arrive after all."""
    for _ in range(2):
        stage.faults.kill(await _with_steps(stage))
        await _until(lambda: _forged(stage), "a step has a new lease")


async def let_sends_fail(stage: Scene) -> None:
    """Some rounds of sending fail: the role processes see to it."""
    await asyncio.sleep(SECONDS)


async def send_poison(stage: Scene) -> None:
    settings = stage.settings
    kinds = poison.cases(stage.load.seed, settings.commands_partitions, settings.ingress_partitions)
    for it in islice(kinds, 12):
        await stage.load.poison(it)


async def die_before_replying(stage: Scene) -> None:
    """A gateway dies when Kafka has a command and its sender knows nothing: he sends it again."""
    for _ in range(4):
        await _die_at(stage, await _there(stage, "gateway"), BEFORE_REPLY)


async def stand_still(stage: Scene) -> None:
    """Nobody does anything for the whole time; then all goes on and ends as it should."""
    victims = [stage.faults.victim("worker", 0), stage.faults.victim("worker", 1), stage.faults.victim("executor")]
    for victim in victims:
        stage.faults.stop(victim)
    await asyncio.sleep(SECONDS)
    stage.calm()
    for victim in victims:
        stage.faults.go_on(victim)


ARMS: Mapping[str, Arm] = {
    arm.defence: arm
    for arm in (
        Arm("inbox", "inbox", repeat_everything, ("wrong outcome", "I1", "I3", "I5")),
        Arm(
            "fence",
            "fence",
            zombie,
            ("I3", "I4", "I5", "I6", "I9", "gap in events", "dead letter", "wrong end"),
            lease_seconds=ZOMBIE_LEASE_SECONDS,
            tries=5,
        ),
        Arm("drain", "drain", die_before_sending, ("I4", "I6")),
        Arm("lease token", "lease_token", answer_late, ("I7",)),
        Arm("order", f"order,{FAILING_SENDS}", let_sends_fail, ("I4", "I6")),
        Arm("dead letters", "dead_letters", send_poison, ("poison not contained", "I1", "I12")),
        Arm("idempotency key", "", die_before_replying, ("run that nobody started",), keys=False),
        Arm("acknowledgement", f"{ACKNOWLEDGEMENT},{FAILING_SENDS}", let_sends_fail, ("lost run",)),
        Arm("progress", "", stand_still, ("too little progress",)),
    )
}


# --- their parts ---------------------------------------------------------------------------------------------


async def _die_at(stage: Scene, victim: Victim, place: str) -> None:
    stage.faults.kill_at(victim, place)
    await _until(lambda: not is_alive(victim.identity), f"{victim.name} comes to {place}")


async def _there(stage: Scene, role: str, index: int = 0) -> Victim:
    found: list[Victim] = []

    def look() -> bool:
        try:
            found.append(stage.faults.victim("gateway" if role == "gateway" else "worker", index))
        except NobodyThere:
            return False
        return True

    await _until(look, f"a {role} runs")
    return found[0]


async def _with_lanes(stage: Scene) -> Victim:
    """A worker that owns lanes."""
    found: list[Victim] = []

    async def look() -> bool:
        for index in (0, 1):
            try:
                victim = stage.faults.victim("worker", index)
            except NobodyThere:
                return False
            if await _count(stage, "SELECT count(*) FROM lane WHERE owner LIKE $1", victim.owner_pattern):
                found.append(victim)
        return bool(found)

    await _until(look, "a worker owns lanes")
    return found[0]


async def _with_steps(stage: Scene) -> Victim:
    found: list[Victim] = []
    held = "SELECT count(*) FROM node_run WHERE leased_by LIKE $1 AND ready AND status = 'queued' AND result IS NULL"

    async def look() -> bool:
        for index in (0, 1):
            try:
                victim = stage.faults.victim("worker", index)
            except NobodyThere:
                continue
            if await _count(stage, held, victim.owner_pattern):
                found.append(victim)
        return bool(found)

    await _until(look, "a worker executes steps")
    return found[0]


async def _holds_all(stage: Scene, victim: Victim) -> bool:
    return not await _count(stage, "SELECT count(*) FROM lane WHERE owner NOT LIKE $1", victim.owner_pattern)


async def _forged(stage: Scene) -> bool:
    """Answer, as their former holders would, for all steps that are being executed again; whether there were any."""
    rows = await _fetch(
        stage,
        "SELECT id, run_id, tenant_id, lease_token FROM node_run"
        " WHERE requeues > 0 AND ready AND status = 'queued' AND result IS NULL AND leased_by IS NOT NULL",
    )
    for row in rows:
        token, run_id = row["lease_token"] - 1, str(row["run_id"])
        command = CompleteNode(
            run_id=run_id, node_run_id=str(row["id"]), lease_token=token, output={"late": True}, worker="late"
        )
        id = derive(str(row["id"]), f"result:{token}")
        envelope = Envelope(id, command.type, row["tenant_id"], subject=run_id, causation_id=str(row["id"]))
        partition = partition_of(run_id, stage.settings.commands_partitions)
        await stage.load.producer.send(COMMANDS, partition, run_id, envelope.headers(), command.encode())
    return bool(rows)


async def _count(stage: Scene, sql: str, *arguments: Any) -> int:
    return sum(row[0] for row in await _fetch(stage, sql, *arguments))


async def _fetch(stage: Scene, sql: str, *arguments: Any) -> list[Any]:
    database = await asyncpg.connect(stage.settings.required_database_url, timeout=5)
    try:
        return list(await database.fetch(sql, *arguments))
    finally:
        await database.close()


async def _until(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Raises TimeoutError with what was waited for."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with contextlib.suppress(*DATABASE_ERRORS):  # A server may be away just now.
                    holds = condition()
                    if holds if isinstance(holds, bool) else await holds:
                        return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise TimeoutError(f"waited {PATIENCE_SECONDS:g} s for this: {what}") from None


def _nothing(text: str) -> None:
    """What the roles of an arm say is of no interest: they are meant to break."""
