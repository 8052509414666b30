"""Reactions have ids of their own; whoever awaits a command is told; outcomes may come later; tenants stay apart."""

from __future__ import annotations

from dataclasses import asdict

import orjson
import pytest

from bus.dead_letters import Letter, NotRetriable, again
from bus.limits import Defences
from bus.store import DeadLetter
from schemas.envelope import AnswerTo, decode_headers
from schemas.topics import DEAD_LETTERS, REPLIES
from tests.kernel.toy import Do, Make, Platform, named


async def made(platform: Platform, *names: str) -> None:
    for name in names:
        await platform.feed(platform.command(Make(toy_id=named(name))))


async def test_each_event_of_a_decision_has_a_reaction_of_its_own() -> None:
    platform = Platform()
    await made(platform, "other")
    await platform.feed(platform.command(Make(toy_id=named("one"), times=3, other=named("other"))))
    assert platform.notes("other")[1:] == ["at 1", "at 2", "at 3"]


@pytest.mark.parametrize(("how", "told"), [("answer", "done"), ("refuse", "refused"), ("raise", "internal_error")])
async def test_whoever_awaits_a_command_is_told_what_became_of_it(how: str, told: str) -> None:
    platform = Platform()
    await made(platform, "asks", "works")
    await platform.do("asks", "ask", other=named("works"), detail=how)
    assert platform.notes("asks")[-1] == f"s/w: {told}"


async def test_whoever_awaits_a_command_for_nobody_is_told() -> None:
    platform = Platform()
    await made(platform, "asks")
    await platform.do("asks", "ask", other=named("nobody"), detail="answer")
    assert platform.notes("asks")[-1] == "s/w: toy_not_found"


async def test_whoever_awaits_a_record_that_cannot_be_read_is_told() -> None:
    platform = Platform()
    await made(platform, "asks")
    address = str(AnswerTo("toy", named("asks"), "s", "w"))
    out = platform.command(Do(toy_id=named("works")), external=False, answer_to=address)
    await platform.feed(out._replace(body=b"{"))
    assert platform.notes("asks")[-1] == "s/w: invalid_body"


async def test_without_answers_whoever_waits_waits_for_ever() -> None:
    platform = Platform(defences=Defences(answers=False))
    await made(platform, "asks", "works")
    await platform.do("asks", "ask", other=named("works"), detail="raise")
    assert len(platform.notes("asks")) == 2


async def test_nobody_outside_can_say_whom_to_tell() -> None:
    platform = Platform()
    await made(platform, "victim", "works")
    address = str(AnswerTo("toy", named("victim"), "s", "w"))
    for how in ("refuse", "raise"):
        await platform.feed(platform.command(Do(toy_id=named("works"), how=how), answer_to=address))
    await platform.feed(platform.command(Do(toy_id=named("works")), answer_to=address)._replace(body=b"{"))
    assert len(platform.notes("victim")) == 1


@pytest.mark.parametrize("address", ["bad", "a/b/c", "nope/x/y/z", "toy/not-an-id/s/w", "toy//s/w"])
@pytest.mark.parametrize("how", ["refuse", "raise", "answer"])
async def test_an_address_that_names_nobody_harms_nobody(address: str, how: str) -> None:
    platform = Platform()
    await made(platform, "works", "other")
    await platform.feed(platform.command(Do(toy_id=named("works"), how=how), external=False, answer_to=address))
    assert (await platform.do("works"))["status"] == "succeeded"
    assert all(not lane.stopped for lane in platform.kernel.lanes.values())


@pytest.mark.parametrize("redrive", [b"70000", b"-1", b"99999999999999999999"])
async def test_a_number_that_the_inbox_cannot_hold_is_a_dead_letter(redrive: bytes) -> None:
    platform = Platform()
    await made(platform, "works")
    out = platform.command(Do(toy_id=named("works")), external=False)
    await platform.feed(out._replace(headers=[*out.headers, ("ce_redrive", redrive)]))
    assert [letter.code for letter in platform.database.letters.values()] == ["malformed_header"]
    assert (await platform.do("works"))["status"] == "succeeded"


async def test_a_letter_whose_sender_was_told_is_not_tried_again() -> None:
    platform = Platform()
    await made(platform, "asks", "works")
    await platform.do("asks", "ask", other=named("works"), detail="raise")
    (letter,) = platform.database.letters.values()
    assert isinstance(letter, DeadLetter)
    assert platform.of(DEAD_LETTERS)
    with pytest.raises(NotRetriable, match="told"):
        again(stored(letter), 3, 0.0)


async def test_an_outcome_may_come_later() -> None:
    platform = Platform()
    await made(platform, "one")
    begun = platform.command(Do(toy_id=named("one"), how="begin"))
    await platform.feed(begun)
    assert platform.outcome(begun)["status"] == "pending"
    told = len(platform.of(REPLIES))
    await platform.feed(begun)  # Sent again meanwhile: neither handled twice nor answered.
    assert (platform.notes("one"), len(platform.of(REPLIES))) == (["", "begin"], told)
    id = decode_headers(begun.headers).id
    for _ in range(2):  # The second end finds it ended.
        await platform.do("one", "end", command_id=id)
        assert platform.outcome(begun) == {"status": "succeeded", "body": {"made": "later"}}
    replies = [out for out in platform.of(REPLIES) if out.key == id]
    assert [out.body for out in replies] == [
        b'{"command_id":"%b","status":"succeeded","body":{"made":"later"}}' % id.encode()
    ]
    await platform.feed(begun)
    assert len([out for out in platform.of(REPLIES) if out.key == id]) == 2


async def test_an_outcome_that_does_not_come_fails_at_its_deadline() -> None:
    platform = Platform()
    await made(platform, "one")
    begun = platform.command(Do(toy_id=named("one"), how="begin"))
    await platform.feed(begun)
    for seconds, status in ((29.0, "pending"), (2.0, "failed")):
        platform.at += seconds
        await platform.kernel.fire_timers()
        await platform.settle()
        assert platform.outcome(begun)["status"] == status
    assert platform.outcome(begun)["body"]["code"] == "deadline_exceeded"
    await platform.do("one", "end", command_id=decode_headers(begun.headers).id)
    assert platform.outcome(begun)["status"] == "failed"


async def test_an_id_of_another_tenant_is_taken_or_names_nothing() -> None:
    platform = Platform()
    await made(platform, "one")
    taken = platform.command(Make(toy_id=named("one")), tenant_id="t2")
    foreign = platform.command(Do(toy_id=named("one")), tenant_id="t2")
    nobody = platform.command(Do(toy_id=named("nobody")), tenant_id="t2")
    for out in (taken, foreign, nobody):
        await platform.feed(out)
    assert platform.outcome(taken)["body"]["code"] == "id_taken"
    assert platform.outcome(foreign) == platform.outcome(nobody)
    assert platform.outcome(foreign)["body"]["status"] == 404
    assert len(platform.notes("one")) == 1


def stored(letter: DeadLetter) -> Letter:
    """As it is read from its table."""

    headers = [(name, value.encode()) for name, value in orjson.loads(letter.headers)]
    return Letter(**asdict(letter) | {"headers": headers}, status="dead", redrives=0)
