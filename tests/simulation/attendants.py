"""Who deals with a run and the runs below it while they go on: people with tasks, and whoever pauses or cancels."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from projections.human import HumanTask
from projections.runtime import NodeRun
from schemas import human as human_wire
from schemas import runtime as wire
from schemas.messages import Command
from tests.simulation.observations import Verdict
from tests.simulation.observed import BY_HAND

if TYPE_CHECKING:
    from tests.simulation.clients import Clients, Started

USERS = ("ops-1", "ops-2", "王芳")
OPEN = ("open", "claimed")


class Attendants:
    """The run `root` and all below it, as one family."""

    def __init__(self, clients: Clients, root: Started) -> None:
        self.clients = clients
        self.world = clients.world
        self.chance = clients.world.chance
        self.root = root

    def family(self) -> list[Started]:
        return [each for each in self.clients.started.values() if each.root == self.root.id]

    def settled(self) -> bool:
        return all(self.world.settled(each) for each in self.family())

    async def ask(self, command: Command) -> str:
        return await self.clients.ask(command, self.root.tenant_id)

    # People.

    async def people(self) -> None:
        """Sooner or later somebody deals with every task."""
        while not self.settled():
            await asyncio.sleep(self.chance.uniform(0, 0.8))
            tasks = self._tasks()
            if tasks:
                await self._deal_with(self.chance.choice(tasks))

    def _tasks(self) -> list[HumanTask]:
        runs = {each.id for each in self.family()}
        rows = self.world.database.tables["human_task"].values()
        return [row for row in rows if row.run_id in runs and row.status in OPEN]

    async def _deal_with(self, task: HumanTask) -> None:
        wanted = self._wanted(task)
        fate = self.chance.random()
        if fate < 0.15:
            await self.ask(human_wire.ClaimTask(task_id=task.id, claimed_by=self._user(task)))
        elif fate < 0.2:
            await self.ask(human_wire.ReleaseTask(task_id=task.id))
        elif fate < 0.23 or wanted.status == "cancelled":
            await self.ask(human_wire.CancelTask(task_id=task.id, reason="not needed"))
        elif fate < 0.38:
            await asyncio.gather(*(self.ask(self._answer(task, wanted)) for _ in range(2)))
        elif wanted.status != "expired" or fate > 0.9:
            answer = self._answer(task, wanted)
            await self.ask(answer)
            if self.chance.random() < 0.2:
                await self.ask(self.chance.choice((answer, self._answer(task, wanted))))

    def _wanted(self, task: HumanTask) -> Verdict:
        run, path, iteration, attempt = self.clients.asked[task.id]
        return cast(Verdict, run.scenario.effects(path, iteration, attempt))

    def _answer(self, task: HumanTask, wanted: Verdict) -> human_wire.CompleteTask:
        """What is wanted mostly; whoever is in a hurry says something else."""
        status = (
            wanted.status if self.chance.random() < 0.7 else self.chance.choice(("approved", "rejected", "completed"))
        )
        if status in ("expired", "cancelled") or (status == "completed" and task.task_type == "approval"):
            status = "approved"
        return human_wire.CompleteTask(
            task_id=task.id,
            status=status,
            response_payload=wanted.response or {"n": 1},
            completed_by=self._user(task) if self.chance.random() < 0.7 else None,
        )

    def _user(self, task: HumanTask) -> str:
        """Mostly whom the task is with."""
        others = self.chance.choice(USERS)
        return (task.claimed_by or task.assigned_to or others) if self.chance.random() < 0.8 else others

    async def by_hand(self) -> None:
        """Somebody outside says what a node run has come to that waits for a person or a child run, once or twice."""
        for _ in range(self.chance.randint(1, 2)):
            row = await self._find_waiting()
            if row is None:
                return
            names = {"run_id": row.run_id, "node_run_id": row.id, "worker_key": BY_HAND}
            if self.chance.random() < 0.5:
                await self.ask(wire.SetNodeStatus(**names, status="running"))
            await self.ask(wire.SetNodeStatus(**names, status="completed", output={"by": "hand"}))

    async def _find_waiting(self) -> NodeRun | None:
        while not self.settled():
            await asyncio.sleep(self.chance.uniform(0, 0.5))
            runs = {each.id for each in self.family()}
            rows = [row for row in self.world.database.tables["node_run"].values() if row.run_id in runs]
            waiting = [row for row in rows if row.status == "pending" and row.wait_on != "timer"]
            if waiting and self.chance.random() < 0.3:
                return cast(NodeRun, self.chance.choice(waiting))
        return None

    # Whoever is responsible for runs.

    async def pauses(self) -> None:
        """Pauses some run of the family, and resumes it; both perhaps twice."""
        for _ in range(self.chance.randint(1, 4)):
            await asyncio.sleep(self.chance.choice((0.2, 1.0, 3.0)) * self.chance.random())
            run = self._any_run(root_share=0.5)
            if run is None:
                continue
            for _ in range(self.chance.choice((1, 1, 2))):
                await self.ask(wire.PauseRun(run_id=run.id))
            await asyncio.sleep(self.chance.choice((0.5, 3.0, 6.0)) * self.chance.random())
            for _ in range(self.chance.choice((1, 1, 2))):
                await self.ask(wire.ResumeRun(run_id=run.id))

    async def cancels_a_child(self) -> None:
        """Cancels some child run that goes on, perhaps by force."""
        while not self.settled():
            await asyncio.sleep(self.chance.uniform(0, 0.5))
            run = self._any_run(root_share=0.0)
            if run is not None and self.chance.random() < 0.3:
                force, compensate = self.chance.random() < 0.3, self.chance.random() < 0.5
                await self.ask(wire.CancelRun(run_id=run.id, compensate=compensate, force=force))
                return

    def _any_run(self, root_share: float) -> Started | None:
        going = [each for each in self.family() if self.world.exists(each.id) and not self.world.ended(each.id)]
        below = [each for each in going if each is not self.root]
        if self.root in going and self.chance.random() < root_share:
            return self.root
        return self.chance.choice(below) if below else None
