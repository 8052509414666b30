"""Other durable engines, each run at its best documented settings in one process on the same Postgres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peer:
    """A system to compare with. `package`: whose version is reported; `records`: what a step of it leaves behind.

    `program`: what must be on the path besides, and the package of npm that brings it.
    """

    package: str
    records: str
    program: tuple[str, str] | None = None


PEERS: Mapping[str, Peer] = {
    "dbos": Peer(
        "dbos",
        "a status row for each workflow, updated at its end; a row with the output of each step",
    ),
    "absurd": Peer(
        "absurd-sdk",
        "a task and a run row for each task, updated when claimed and when completed; a checkpoint row for each step",
    ),
    "langgraph": Peer(
        "langgraph",
        "a checkpoint of the whole state after each node; the channels it changed; the writes of each node",
    ),
    "procrastinate": Peer(
        "procrastinate",
        "a job row for each step, updated when fetched and when finished, with an event row for each change",
    ),
    "restate": Peer(
        "restate-sdk",
        "journal entries of the step's command and result in the server's replicated log, applied to its store",
        program=("restate-server", "@restatedev/restate-server"),
    ),
}
"""By name: the module `infra.bench.peers.<name>` has `async def run(workload: Workload) -> None`."""
