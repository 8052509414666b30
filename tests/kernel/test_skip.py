"""Stepping over a record by hand: whoever awaits what it says is told."""

from __future__ import annotations

import pytest

from bus.dead_letters import letter_of
from bus.lanes import INGRESS_BASE
from bus.store import Incoming
from infra.operate.lanes import Standing, _as_batch
from infra.settings import Settings
from schemas.catalog import TakeCheck
from schemas.envelope import AnswerTo, Envelope, decode_headers
from schemas.registry import decode_command
from schemas.topics import COMMANDS
from tests.kernel.toy import named

AWAITED = AnswerTo("catalog", named("workflow"), named("version"), named("check"))


def told(lane: int, fingerprint: str = "") -> list[TakeCheck]:
    """What a lane sends to others when the record it stands at is stepped over."""
    envelope = Envelope(
        named("message"), "some.day", "t1", named("run"), fingerprint=fingerprint, answer_to=str(AWAITED)
    )
    record = Incoming(lane, 7, named("run").encode(), envelope.headers(), b"{}")
    standing = Standing(lane, "commands", lane, "", 1, 7, 0, 0, 0, "unknown_type", 0, 9, 0)
    batch = _as_batch(Settings(), standing, letter_of(record, lane, "skipped", "unknown_type", 1.0), record)
    commands = [out for out in batch.writes.outbox if out.topic == COMMANDS]
    return [
        command
        for out in commands
        if isinstance(command := decode_command(decode_headers(out.headers).type, out.body), TakeCheck)
    ]


def test_whoever_awaits_a_record_that_is_stepped_over_is_told() -> None:
    (command,) = told(1)
    assert (command.definition_id, command.version_id, command.check_id) == AWAITED[1:]
    assert command.code == "skipped"


@pytest.mark.parametrize(("lane", "fingerprint"), [(1, "f"), (INGRESS_BASE, "")])
def test_a_stranger_says_in_vain_whom_to_tell(lane: int, fingerprint: str) -> None:
    assert told(lane, fingerprint=fingerprint) == []
