"""One command id stands for one request, also when two come at the same time; and nobody takes a derived id."""

from __future__ import annotations

import asyncio
import uuid

import orjson
import pytest
from pydantic import ValidationError

from bus.records import Partitions
from bus.store import Incoming, Out
from schemas import catalog, runtime
from schemas.envelope import Envelope
from schemas.topics import COMMANDS, REPLIES, partition_of
from tests.domains.platform import LANES, TENANT, Platform
from tests.patience import patient

WORKFLOW = catalog.definition_id(TENANT, "workflow", "w")
ID = str(uuid.UUID(int=21, version=4))
REPLY_PARTITIONS = Partitions(LANES, LANES, 1).replies


def asked(name: str, reply_partition: int) -> Out:
    command = catalog.CreateDefinition(kind="workflow", code="w", name=name)
    place = partition_of(WORKFLOW, LANES)
    envelope = Envelope(
        ID, command.type, TENANT, subject=WORKFLOW, fingerprint=f"f {name}", reply_partition=reply_partition
    )
    return Out(place, 0, COMMANDS, place, WORKFLOW, envelope.headers(), command.encode(), TENANT)


async def test_two_requests_under_one_id_in_one_batch_are_told_apart() -> None:
    platform = Platform()
    await platform.claim()
    outs = [asked("one", 0), asked("two", 1), asked("one", 2)]
    await platform.kernel.handle(
        [
            Incoming(out.partition, offset, out.key.encode(), out.headers, out.body, platform.at)
            for offset, out in enumerate(outs)
        ]
    )
    async with asyncio.timeout(patient(5)):
        while len(platform.log.topic(REPLIES)) < 2:
            await asyncio.sleep(0)
    told = [
        (place, orjson.loads(out.body)["status"])
        for place in range(REPLY_PARTITIONS)
        for _, out in platform.log.of(REPLIES, place)
    ]
    assert told == [(0, "succeeded"), (1, "rejected")]
    (row,) = platform.database.tables["definition"].values()
    assert row.name == "one"


@pytest.mark.parametrize("taken", [WORKFLOW, runtime.node_run_id(ID, "a", "1")])
def test_an_id_that_can_be_foretold_cannot_be_chosen_for_a_run(taken: str) -> None:
    with pytest.raises(ValidationError, match="version 5"):
        runtime.CreateRun(run_id=taken, workflow_id=WORKFLOW)
    assert runtime.CreateRun(run_id=ID, workflow_id=WORKFLOW).run_id == ID
