"""What the client of a benchmark reads from undecoded records is what they say."""

from __future__ import annotations

import itertools
import uuid

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from bus.record_batches import batches
from bus.records import Partitions, event_record
from bus.store import Logged
from infra.bench.ends import seen
from schemas.decider import Recorded
from schemas.messages import Event
from schemas.runtime import NodeCompleted, RunCancelled, RunCompensated, RunCompleted, RunFailed

PARTITIONS = Partitions(12, 12, 12)
ERROR = {"code": "x", "message": "ce_type runtime.run_completed"}


def _batch(events: list[tuple[str, int, Event]]) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=1, producer_epoch=0, base_sequence=0,
        batch_size=1 << 20,
    )  # fmt: skip
    for offset, (run, seq, event) in enumerate(events):
        recorded = Recorded(event, run, seq, 1.5, "租户", 3, "somebody", "correlation", "cause", "")
        out = event_record(Logged(offset, recorded, event.encode()), PARTITIONS)
        builder.append(offset, 1_500, out.key.encode(), out.body, out.headers)
    return bytes(builder.build())


def _told(data: bytes) -> tuple[list[tuple[str, str]], int]:
    told = [seen(batch.body) for batch in batches(data)]
    return list(itertools.chain.from_iterable(each.ends for each in told)), sum(each.node_runs for each in told)


@pytest.mark.parametrize("seq", [2, 99, 12_345_678, 2_000_000_000])
def test_ends_are_found_with_their_run_and_how_it_ended(seq: int) -> None:
    runs = [str(uuid.UUID(int=number << 64 | 0xABC)) for number in range(4)]
    node = NodeCompleted(node_run_id=runs[0], output={"text": "runtime.run_completed"})
    ends = [
        RunCompleted(output={"ce_type": "runtime.run_failed"}), RunFailed(error=ERROR), RunCancelled(),
        RunCompensated(error=ERROR),
    ]  # fmt: skip
    events: list[tuple[str, int, Event]] = []
    for run, end in zip(runs, ends, strict=True):
        events += [(run, seq - 1, node), (run, seq, end)]
    how = ["completed", "failed", "cancelled", "compensated"]
    assert _told(_batch(events)) == (list(zip(runs, how, strict=True)), 4)


def test_what_is_no_end_is_none() -> None:
    run = str(uuid.uuid4())
    node = NodeCompleted(node_run_id=run, output={"a": f"{run}/7 ce_source agent-platform ce_type runtime.run_failed"})
    assert _told(_batch([(run, 1, node)])) == ([], 1)
    assert _told(b"") == ([], 0)
