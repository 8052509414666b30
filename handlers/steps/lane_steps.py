"""Steps of a worker's own lanes: leased in the lane's transaction, answered to the lane that made them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence

from bus.lanes import Lane
from bus.producer import Producer
from bus.store import Out, Unavailable
from bus.worker import Worker
from handlers.runs.programs import Programs
from handlers.steps.executor import DATABASE_ERRORS
from handlers.steps.leases import Leases
from handlers.steps.pool import Held, Result, StepPool
from projections.runtime import NodeRun, Run
from schemas.envelope import Envelope
from schemas.messages import derive
from schemas.topics import STEP_KIND_HEADER, STEPS, partition_of
from schemas.workflow.graph import Node

log = logging.getLogger("agent_platform.steps")

COPIES_PATIENCE_SECONDS = 0.02
"""Copies of results that were handed over wait so long for the next batch, to go with what it made."""


class LaneSteps:
    """The step pool as the kernel sees it (`bus.kernel.Steps`). `worker` is to be set before a step is leased."""

    def __init__(self, pool: StepPool, leases: Leases, programs: Programs, producer: Producer) -> None:
        self._pool = pool
        self._leases = leases
        self._programs = programs
        self._producer = producer
        self._results: list[Result] = []
        self._nodes: dict[str, Node] = {}
        self.worker: Worker | None = None

    def lease(self, row: NodeRun, lane: Lane, at: float, *, new: bool) -> NodeRun | None:
        """None also if the program has been dropped since the decision: then executors find the step."""
        run: Run = lane.aggregates[row.run_id].rows[Run, row.run_id]
        program = self._programs.known(run.workflow_version_id)
        if program is None:
            return None
        leased = self._pool.lease(row, at, new=new)
        if leased is not None:
            self._nodes[row.id] = program.nodes[program.by_id[row.node_id]]
        return leased

    def give_back(self, row: NodeRun) -> None:
        self._nodes.pop(row.id, None)
        self._pool.give_back(row)

    def prepare(self, row: NodeRun, lane: Lane) -> Held:
        run: Run = lane.aggregates[row.run_id].rows[Run, row.run_id]
        node = self._nodes.pop(row.id)
        return self._pool.prepare(row, node, run.traceparent, run.correlation_id)

    def start(self, prepared: Held) -> None:
        self._pool.start(prepared)

    async def list_leased(self, ids: Sequence[str]) -> None:
        with _unavailable():
            await self._leases.list_leased(ids)

    async def list_made(self, floors: Mapping[int, int]) -> None:
        with _unavailable():
            await self._leases.list_made(floors)

    async def deliver(self, result: Result) -> None:
        """Results of one turn of the loop go together: to the lane at once, and the same commands to Kafka."""
        if not self._results:
            asyncio.get_running_loop().call_soon(self._flush)
        self._results.append(result)

    def _flush(self) -> None:
        results, self._results = self._results, []
        assert self.worker is not None
        self.worker.hand_over([result.incoming for result in results])
        # Made when they are about to go: mostly Postgres is at work then, and we are not.
        sent = self._producer.enqueue((result.out for result in results), patience=COPIES_PATIENCE_SECONDS)
        sent.add_done_callback(_noted)


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except DATABASE_ERRORS as error:
        raise Unavailable(f"leases cannot be listed: {error}") from error


def _noted(sent: asyncio.Future[None]) -> None:
    if not sent.cancelled() and sent.exception() is not None:
        log.warning("copies of results did not reach Kafka: %s", sent.exception())


def claimable(row: NodeRun) -> bool:
    """Whether a node run is a step that nobody has leased yet."""
    return row.ready and row.leased_by is None and row.status == "queued"


def hint(row: NodeRun, partitions: int) -> Out:
    """Tells executors that a step waits. Only a hint: they also look by themselves."""
    envelope = Envelope(derive(row.id, f"hint:{row.lease_token}"), "step.ready", row.tenant_id, subject=row.run_id)
    place = partition_of(row.run_id, partitions)
    headers = [*envelope.headers(), (STEP_KIND_HEADER, row.kind.encode())]
    return Out(-1, 0, STEPS, place, row.run_id, headers, b"{}", row.tenant_id)
