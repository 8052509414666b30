"""The processes of the simulation: workers that own lanes, and executors; each can be killed or stopped."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bus.kernel import Kernel
from bus.lanes import Lane
from bus.store import Incoming, Out, SendFailed, Unavailable, Unknown
from handlers.ingress import IngressRules
from handlers.steps.check import problems_of
from infra.domains import Installation, domains
from projections.catalog import Version
from projections.runtime import LEASED, UNLISTED, NodeRun
from schemas import runtime as wire
from schemas.envelope import decode_headers
from schemas.messages import Command
from schemas.runtime import Failure
from tests.simulation import observations as seen
from tests.simulation.memory import MemoryProducer, MemoryStore

if TYPE_CHECKING:
    from tests.simulation.world import World

LEASE_SECONDS = 8.0
RENEW_SECONDS = 2.0
SESSION_SECONDS = 2.0
ROOM = 4


def claimable(row: NodeRun) -> bool:
    return row.ready and row.leased_by is None and row.status == "queued"


def leased(row: NodeRun, by: str, at: float, *, listed: int = LEASED) -> NodeRun:
    deadline = at + row.timeout_seconds if row.timeout_seconds else 0.0
    until = at + LEASE_SECONDS
    return replace(row, leased_by=by, lease_until=until, started_at=at, deadline_at=deadline, listed=listed)


class Process:
    """Runs tasks until it is killed. Every named point is a moment to be suspended, stopped or killed at."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.stopped_until = 0.0
        self.producer = MemoryProducer(world.log, self.point, self._fate_of, ordered=world.defences.order)
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, main: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(main)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.report(f"{self.name} broke: {type(error).__name__}: {error}", error)

    def kill(self) -> None:
        self.dead = True
        for task in self._tasks:
            task.cancel()
        self.world.gone(self)

    def stop(self, seconds: float) -> None:
        self.stopped_until = self.world.now() + seconds
        self.world.silent(self)

    async def point(self, name: str) -> None:
        faults, world = self.world.faults, self.world
        await asyncio.sleep(world.pause())
        while self.stopped_until > world.now():
            await asyncio.sleep(self.stopped_until - world.now())
        if self.dead:
            raise asyncio.CancelledError
        if faults.strikes("crash"):
            faults.counts[f"crash at {name}"] += 1
            world.note(f"{self.name} crashes at {name}")
            self.kill()
            await asyncio.sleep(0)
            raise asyncio.CancelledError
        if faults.strikes("zombie"):
            faults.counts[f"zombie at {name}"] += 1
            seconds = world.chance.uniform(0.5, 20)
            world.note(f"{self.name} stops at {name} for {seconds:.1f} s")
            self.stop(seconds)
            await self.point(name)
        if name in _MAY_FAIL and faults.strikes("unavailable"):
            raise Unavailable(f"injected at {name}")
        if name in _MAY_BREAK and faults.strikes("unknown"):
            world.note(f"{self.name} loses its connection at {name}")
            raise Unknown(f"injected at {name}")

    def _fate_of(self, out: Out) -> int:
        faults = self.world.faults
        if faults.strikes("lost_send"):
            return self.world.chance.choice([0, 0, -1])
        return 2 if faults.strikes("doubled_send") else 1

    async def perform(self, row: NodeRun) -> None:
        """Execute a leased step, and tell the lane what came out; a slow one may answer when nobody waits."""
        world = self.world
        world.begin(row)
        if world.faults.strikes("lost_executor"):
            return
        silent = world.faults.strikes("slow_executor")
        await self.point("executing")
        ends = world.now() + (world.chance.uniform(7, 30) if silent else world.duration())
        timed_out = 0 < row.deadline_at <= ends and not silent
        ends = min(ends, row.deadline_at) if timed_out else ends
        while (left := ends - world.now()) > 0:
            await asyncio.sleep(min(left, RENEW_SECONDS))
            await self.point("executing")
            if not silent and not world.renew(row, self.name) and world.chance.random() < 0.5:
                return
        command = self._answer(row, timed_out)
        out = world.command(command, row, f"result:{row.lease_token}")
        started = world.clients.started.get(row.run_id)
        if started is not None and started.poisoned:
            world.database.refused.add(decode_headers(out.headers).id)
        await self.tell(row, command, out)

    async def tell(self, row: NodeRun, command: Command, out: Out) -> None:
        """Store the answer with the lease, and send it; if that is lost, the sweep of its lane sends it again."""
        if self.world.chance.random() < 0.7 and not self.world.finish(row, self.name, out):
            return
        for _ in range(2):
            try:
                await self.producer.publish([out])
                return
            except SendFailed:
                continue

    def _answer(self, row: NodeRun, timed_out: bool) -> Command:
        worker = f"{self.name}:{row.lease_token}"
        names = {"run_id": row.run_id, "node_run_id": row.id, "lease_token": row.lease_token, "worker": worker}
        if timed_out:
            return wire.FailNode(**names, error=Failure(code="timeout"))
        if row.kind == "check":
            version = self.world.database.tables["definition_version"][(row.input or {})["version_id"]]
            return wire.CompleteNode(**names, output={"problems": problems_of(version.spec)})
        match self.world.effects(row.run_id)(row.path, row.iteration, row.attempt):
            case seen.Success(output, text):
                return wire.CompleteNode(**names, output=output, output_text=text)
            case seen.Failure(code, retryable, output, text):
                error = Failure(code=code)
                return wire.FailNode(**names, error=error, retryable=retryable, output=output, output_text=text)
            case other:
                raise AssertionError(f"{row.path} is no step: {other}")


_MAY_FAIL = frozenset({"list", "locked", "load", "before_commit", "before_write", "before_claim", "unsent"})
_MAY_BREAK = frozenset({"before_commit", "before_write", "after_commit"})


class Clock:
    """Database time as a process knows it: a little off."""

    def __init__(self, world: World, skew: float) -> None:
        self._world = world
        self._skew = skew

    def now(self) -> float:
        return self._world.now() + self._skew


class Worker(Process):
    """Owns the lanes that it is assigned, handles their records, and executes some steps itself."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.woken = asyncio.Event()
        self.handed: deque[Incoming] = deque()
        self.executing = 0
        installed = Installation(world.programs, check_tokens=world.defences.lease_token, share=world.share)
        self.kernel = Kernel(
            MemoryStore(world.database, self.point),
            self.producer,
            domains(installed),
            world.specs,
            partitions=world.partitions,
            clock=Clock(world, world.chance.uniform(-0.05, 0.05)),
            owner=name,
            steps=self,
            claimable={NodeRun: claimable},
            limits=world.limits,
            ingress=IngressRules(auth_required=False),
            defences=world.defences,
            immutable_facts=frozenset({Version}),
        )

    # The port `Steps`.

    def lease(self, row: NodeRun, lane: Lane, at: float, *, new: bool) -> NodeRun | None:
        if self.executing >= ROOM or self.world.chance.random() < 0.3:
            return None
        self.executing += 1
        return leased(row, self.name, at, listed=UNLISTED if new else LEASED)

    async def list_leased(self, ids: Sequence[str]) -> None:
        await self.point("list")
        self.world.list_leases(ids)

    async def list_made(self, floors: Mapping[int, int]) -> None:
        await self.point("list")
        self.world.list_leases(
            [
                logged.recorded.event.node_run_id
                for logged in self.world.database.events.values()
                if logged.position > floors.get(logged.recorded.lane, logged.position)
                and isinstance(logged.recorded.event, wire.NodeScheduled)
            ]
        )

    def prepare(self, row: NodeRun, lane: Lane) -> NodeRun:
        return row

    def start(self, prepared: NodeRun) -> None:
        self.spawn(self._execute(prepared))

    async def _execute(self, row: NodeRun) -> None:
        try:
            await self.perform(row)
        finally:
            self.executing -= 1

    def give_back(self, row: NodeRun) -> None:
        self.executing -= 1

    async def tell(self, row: NodeRun, command: Command, out: Out) -> None:
        if self.world.chance.random() < 0.8:
            self.hand_over(command, out)
            if self.world.chance.random() < 0.3:
                return  # The copy on the topic is lost.
        await super().tell(row, command, out)

    def hand_over(self, command: Command, out: Out) -> None:
        decoded = (decode_headers(out.headers), command)
        self.handed.append(Incoming(out.partition, -1, out.key.encode(), out.headers, out.body, decoded=decoded))
        self.woken.set()

    # Lanes.

    async def main(self) -> None:
        while True:
            await self.point("poll")
            try:
                await self._own()
                await self.kernel.fire_timers()
                await self.kernel.list_leases()
                records = self._poll()
                if records:
                    await self.kernel.handle(records)
                else:
                    await self.kernel.trim()
                    await self._idle()
            except Unavailable as error:
                self.world.note(f"{self.name}: {error}")

    async def _own(self) -> None:
        """Give up what is no longer assigned, claim what is, drain what failed to be sent."""
        mine = self.world.assigned(self)
        for lane in set(self.kernel.lanes) - mine:
            self.kernel.release(lane)
        missing = sorted(mine - set(self.kernel.lanes))
        try:
            if missing:
                await self.kernel.claim(missing)
                self.world.note(f"{self.name} owns {missing}")
            await self.kernel.drain_failed()
        except (Unavailable, Unknown, SendFailed) as error:
            self.world.note(f"{self.name}: {type(error).__name__} {error}")
            for each in self.kernel.failed_lanes:
                self.kernel.release(each.id)

    def _poll(self) -> list[Incoming]:
        chance, log = self.world.chance, self.world.log
        records: list[Incoming] = []
        lanes = sorted(self.kernel.lanes.values(), key=lambda lane: lane.id)
        chance.shuffle(lanes)
        for lane in lanes:
            first = lane.polled
            lane.gap = False
            if first and self.world.faults.strikes("redelivery"):
                first = chance.randrange(first)
            place = self.world.place(lane.id)
            last = min(len(log.of(*place)), lane.polled + chance.randint(1, 8))
            if self.world.faults.strikes("gap"):
                first += 1  # These were fetched before the lane was ours.
            records += [log.incoming(place[0], lane.id, place[1], at) for at in range(first, last)]
        for _ in range(min(len(self.handed), chance.randint(1, 4))):
            records.insert(0, self.handed.popleft())
        return records

    async def _idle(self) -> None:
        self.woken.clear()
        ends = {id: len(self.world.log.of(*self.world.place(id))) for id in self.kernel.lanes}
        if any(lane.polled < ends[id] for id, lane in self.kernel.lanes.items()):
            return
        try:
            async with asyncio.timeout(self.world.chance.uniform(0.1, 1.0)):
                await self.woken.wait()
        except TimeoutError:
            return


class Executor(Process):
    """Claims steps that wait, whoever made them."""

    async def main(self) -> None:
        while True:
            await self.point("poll")
            for row in self.world.claim_steps(self.name, self.world.chance.randint(1, 3)):
                self.spawn(self.perform(row))
            try:
                async with asyncio.timeout(1.0):
                    await self.world.step_made.wait()
            except TimeoutError:
                continue
