"""The whole platform in memory under faults, all of it decided by one seed; `python -m tests.simulation.world SEED`."""

from __future__ import annotations

import asyncio
import math
import random
import sys
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bus.lanes import INGRESS_BASE
from bus.limits import Defences, Limits
from bus.records import Partitions
from bus.store import Out, Writes
from handlers.runs.programs import Programs
from infra.domains import PROJECTIONS
from projections.runtime import LEASED, READY, UNLISTED, NodeRun
from schemas import runtime as wire
from schemas.envelope import Envelope
from schemas.messages import Command, derive
from schemas.topics import COMMANDS, INGRESS, partition_of
from tests.simulation import fake_time
from tests.simulation.clients import Clients, Started
from tests.simulation.faults import Faults, Rates
from tests.simulation.interpreter import Effects
from tests.simulation.memory import MemoryDatabase, MemoryLog
from tests.simulation.processes import (
    LEASE_SECONDS,
    SESSION_SECONDS,
    Executor,
    Process,
    Worker,
    leased,
)

EPOCH = 1_700_000_000.0
LANES = 4
INGRESS_LANES = 2
CHAOS_SECONDS = 40.0
HEAL_SECONDS_MAX = 400.0
NODE_ENDED = (wire.NodeCompleted, wire.NodeFailed, wire.NodeSkipped, wire.NodeCancelled)


@dataclass
class World:
    """Processes, the database and the log between them, and who owns which lane."""

    seed: int
    defences: Defences = field(default_factory=Defences)
    rates: Rates | None = None
    workers: int = 3
    runs: int = 3

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.faults = Faults(self.chance, self.rates or Rates().drawn(self.chance))
        self.specs = PROJECTIONS
        self.partitions = Partitions(LANES, self.chance.choice((3, LANES)), 1)
        self.lanes = [*range(LANES), *range(INGRESS_BASE, INGRESS_BASE + INGRESS_LANES)]
        self.limits = Limits(
            aggregates_max=self.chance.choice((1, 2, 400)),
            aggregate_bytes_max=self.chance.choice((1, 4_000, 256 * 1024)),
            rows_max=self.chance.choice((5, 50, 4_096)),
            deciding_seconds_max=math.inf,  # The machine's own speed must not change what a seed does.
        )
        self.programs = Programs()
        self.share = self.chance.choice([2, 5, 256, 256])
        self.speed = self.chance.choice([0.002, 0.01, 0.05])
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.clients = Clients(self)
        self.members: list[Worker] = []
        self.assignment: dict[int, Worker] = {}
        self.answers: dict[bytes, Out] = {}
        self.begun: set[tuple[str, int]] = set()
        self._names = Counter[str]()

    # What processes ask.

    def now(self) -> float:
        return EPOCH + asyncio.get_running_loop().time()

    def note(self, text: str) -> None:
        self.notes.append(f"{self.now() - EPOCH:9.3f} {text}")

    def report(self, problem: str, error: BaseException | None = None) -> None:
        self.problems.append(problem)
        self.note(problem)
        if error is not None:
            self.notes.append("".join(traceback.format_exception(error)))

    def pause(self) -> float:
        return self.chance.choice((0.0, 0.0, self.speed, self.speed * 5)) * self.chance.random()

    def duration(self) -> float:
        return self.chance.choice((0.0, 0.1, 1.0, 3.0)) * self.chance.random()

    def effects(self, run_id: str) -> Effects:
        return self.clients.started[run_id].scenario.effects

    def new_id(self) -> str:
        return str(uuid.UUID(int=self.chance.getrandbits(128), version=4))

    def command(self, command: Command, row: NodeRun, name: str) -> Out:
        """The record of what is said about a step."""
        envelope = Envelope(derive(row.id, name), command.type, row.tenant_id, subject=row.run_id)
        return self.record(command, envelope)

    def record(self, command: Command, envelope: Envelope) -> Out:
        key, partition = envelope.subject, partition_of(envelope.subject, LANES)
        return Out(partition, 0, COMMANDS, partition, key, envelope.headers(), command.encode(), envelope.tenant_id)

    def place(self, lane: int) -> tuple[str, int]:
        """The topic and partition of a lane."""
        return (COMMANDS, lane) if lane < INGRESS_BASE else (INGRESS, lane - INGRESS_BASE)

    # Who owns what.

    def assigned(self, worker: Worker) -> set[int]:
        return {lane for lane, owner in self.assignment.items() if owner is worker}

    def gone(self, process: Process) -> None:
        """A process was killed: its lanes move when its session has ended; another takes its place."""
        loop = asyncio.get_running_loop()
        if isinstance(process, Worker):
            self.members.remove(process)
            loop.call_later(self.chance.uniform(0, SESSION_SECONDS), self._share_out)
            loop.call_later(self.chance.uniform(0.1, 4), self.start, Worker)
        else:
            loop.call_later(self.chance.uniform(0.1, 4), self.start, Executor)

    def silent(self, process: Process) -> None:
        """A process stopped: the group notices when its session has ended."""
        if isinstance(process, Worker):
            loop = asyncio.get_running_loop()
            loop.call_later(SESSION_SECONDS, self._evict, process)
            loop.call_later(process.stopped_until - self.now() + 0.1, self._share_out)

    def _evict(self, worker: Worker) -> None:
        if worker.stopped_until > self.now():
            self._share_out()

    def start(self, kind: type[Worker] | type[Executor]) -> None:
        self._names[kind.__name__] += 1
        process = kind(self, f"{kind.__name__.lower()}-{self._names[kind.__name__]}")
        if isinstance(process, Worker):
            self.members.append(process)
            self._share_out()
        process.spawn(process.main())

    def _share_out(self) -> None:
        """Every lane without a living owner gets one; while faults are on, others move as well."""
        alive = [worker for worker in self.members if not worker.dead and worker.stopped_until <= self.now()]
        if not alive:
            return
        for lane in self.lanes:
            owner = self.assignment.get(lane)
            if owner not in alive or (self.faults.on and self.chance.random() < 0.3):
                self._assign(lane, self.chance.choice(alive))

    def _assign(self, lane: int, worker: Worker) -> None:
        before = self.assignment.get(lane)
        if before is worker:
            return
        self.note(f"lane {lane} goes to {worker.name}")
        self.assignment[lane] = worker
        worker.woken.set()
        if before is not None and not before.dead and self.chance.random() < 0.3:
            before.kernel.release(lane)  # It was told, in the middle of whatever it does.

    # Steps.

    def claim_steps(self, name: str, limit: int) -> list[NodeRun]:
        """What executors do in one statement: lease steps that nobody holds and no lane has locked."""
        self.step_made.clear()
        table = self.database.tables["node_run"]
        waiting = [row for row in table.values() if row.listed == READY and self._free(row)]
        claimed = []
        for row in self.chance.sample(waiting, min(limit, len(waiting))):
            table[row.id] = leased(row, name, self.now())
            claimed.append(table[row.id])
        return claimed

    def list_leases(self, ids: Sequence[str]) -> None:
        """Let the sweep find these steps, as far as they are leased."""
        table = self.database.tables["node_run"]
        for id in ids:
            row = table[id]
            if row.listed == UNLISTED and row.ready and row.leased_by is not None:
                table[id] = replace(row, listed=LEASED)

    def begin(self, row: NodeRun) -> None:
        """I8: nobody executes a step under a lease that somebody has executed it under."""
        if (row.id, row.lease_token) in self.begun:
            self.report(f"{row.run_id}: {row.path} {row.iteration} was executed twice under token {row.lease_token}")
        self.begun.add((row.id, row.lease_token))

    def renew(self, row: NodeRun, name: str) -> bool:
        table = self.database.tables["node_run"]
        held = table[row.id]
        if held.leased_by != name or held.lease_token != row.lease_token:
            return False
        if self._free(row):
            table[row.id] = replace(held, lease_until=self.now() + LEASE_SECONDS)
        return True

    def finish(self, row: NodeRun, name: str, out: Out) -> bool:
        """Store an answer with its lease, if that is still the executor's."""
        table = self.database.tables["node_run"]
        held = table[row.id]
        if held.leased_by != name or held.lease_token != row.lease_token:
            return False
        if self._free(row):
            result = f"{row.id}:{row.lease_token}".encode()
            self.answers[result] = out
            table[row.id] = replace(held, result=result, lease_until=self.now() + 5)
        return True

    def _free(self, row: NodeRun) -> bool:
        return ("node_run", row.id) not in self.database.row_locks

    # The parts that never fail: the sweep of leases, the group.

    async def _sweep(self) -> None:
        """Tell lanes of leases that ran out and of answers unacknowledged, at times too early and more than once."""
        while True:
            await asyncio.sleep(self.chance.uniform(0.5, 1.5))
            early = self.chance.choice((0.0, 0.0, 1.0))
            for row in list(self.database.tables["node_run"].values()):
                if row.listed == LEASED and row.lease_until <= self.now() + early:
                    self._tell(row)

    def _tell(self, row: NodeRun) -> None:
        if row.result is not None:
            self.log.append(self.answers[row.result])
            return
        command = wire.ExpireLease(run_id=row.run_id, node_run_id=row.id, lease_token=row.lease_token)
        out = self.command(command, row, f"expire:{row.lease_token}")
        owner = self.assignment.get(out.partition)
        if owner is not None and self.chance.random() < 0.5:
            owner.hand_over(command, out)
        else:
            self.log.append(out)

    async def _rebalance(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            alive = [worker for worker in self.members if worker.stopped_until <= self.now()]
            if alive and self.faults.strikes("rebalance"):
                self._assign(self.chance.choice(self.lanes), self.chance.choice(alive))

    def ended(self, run_id: str) -> bool:
        run = self.database.tables["run"].get(run_id)
        return run is not None and run.status in wire.RUN_ENDED

    def exists(self, run_id: str) -> bool:
        return run_id in self.database.tables["run"]

    def settled(self, started: Started) -> bool:
        """Whether a run has ended, or will never be: its parent has given it up before it began."""
        if self.exists(started.id) or not started.parent:
            return self.ended(started.id)
        return self.database.tables["node_run"][started.parent].status in wire.NODE_ENDED

    def _on_commit(self, writes: Writes) -> None:
        for logged in writes.events:
            event = logged.recorded.event
            started = self.clients.started.get(logged.recorded.aggregate_id)
            if started is not None and isinstance(event, NODE_ENDED):
                started.ends += 1
            if isinstance(event, wire.NodeWaiting):
                row = self.database.tables["node_run"][event.node_run_id]
                self.clients.waits(row, event.on, event.wait_id)
        self.step_made.set()

    def _on_append(self, out: Out) -> None:
        lane = out.partition + (INGRESS_BASE if out.topic == INGRESS else 0)
        if out.topic in (COMMANDS, INGRESS) and (owner := self.assignment.get(lane)) is not None:
            owner.woken.set()

    # A whole simulation.

    async def live(self) -> None:
        """Chaos, then healing, then some time for what comes late."""
        self.database = MemoryDatabase(self.lanes, self.specs, self.now)
        self.database.fence = self.defences.fence
        self.database.committed = self._on_commit
        self.log = MemoryLog(self.now)
        self.log.appended = self._on_append
        self.step_made = asyncio.Event()
        for _ in range(self.workers):
            self.start(Worker)
        self.start(Executor)
        parts = [self._sweep(), self._rebalance()]
        background = [asyncio.ensure_future(part) for part in parts]
        plays = [asyncio.ensure_future(each) for each in self.clients.plays()]
        await self._until(lambda: self._done(plays), CHAOS_SECONDS)
        self.faults.on = False
        self.note("the faults stop")
        if not await self._until(lambda: self._done(plays) and self._quiet(), HEAL_SECONDS_MAX):
            self.report(f"stuck: {self._stuck()}")
        await asyncio.sleep(30)
        for task in background + plays:
            if task.done() and not task.cancelled() and task.exception() is not None:
                self.report(f"the simulation itself broke: {task.exception()!r}", task.exception())
            task.cancel()

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = self.now() + seconds
        while not condition():
            if self.now() > deadline:
                return False
            await asyncio.sleep(0.2)
        return True

    def _done(self, plays: Sequence[asyncio.Future[None]]) -> bool:
        return all(play.done() for play in plays) and all(map(self.settled, self.clients.started.values()))

    def _quiet(self) -> bool:
        """Every record is handled, everything made is sent."""
        for lane, row in self.database.lanes.items():
            owner = self.assignment[lane].kernel.lanes.get(lane)
            if owner is None or not owner.acknowledge() or owner.unacknowledged:
                return False
            if row.next_offset != len(self.log.of(*self.place(lane))):
                return False
        return True

    def _stuck(self) -> str:
        runs = {id: row.status for id, row in self.database.tables["run"].items()}
        lanes = {
            lane: (row.epoch, row.next_offset, len(self.log.of(*self.place(lane))), self.assignment[lane].name)
            for lane, row in self.database.lanes.items()
        }
        live = [row for row in self.database.tables["node_run"].values() if row.status not in wire.NODE_ENDED]
        return f"runs {runs}, lanes {lanes}, node runs {live}"


def simulate(world: World) -> World:
    """Run a world to its end, and check it."""
    from tests.simulation.invariants import violations

    fake_time.run(world.live())
    world.problems += violations(world)
    return world


def main(arguments: list[str]) -> int:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    world = simulate(World(int(arguments[0])))
    if "-v" in arguments:
        print("\n".join(world.notes))
    print(dict(world.faults.counts))
    print("\n".join(world.problems) or "no violation")
    return bool(world.problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
