"""Dead letters are kept with their reason, listed, sent again under their own id, or dropped."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio

from bus import dead_letters
from bus.dead_letters import Letter, NotRetriable, again
from infra.escaping import escaped
from infra.history.verify import verify
from infra.local.embedded import EmbeddedStack
from schemas.envelope import Envelope
from schemas.messages import derive, natural_id
from schemas.runtime import ContinueRun, CreateRun, ExecuteRun
from schemas.topics import COMMANDS, DEAD_LETTER_BODY_BYTES_MAX, INGRESS, partition_of
from tests.command_line import ap
from tests.hostile_text import CORPUS, active
from tests.live import TENANT, Live, prepared, running, until
from tests.schemas.workflows import edge, graph, node

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.services]
DSL = graph(node("start", "start"), node("end", "answer", text="a"), edge("start", "end"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(services: EmbeddedStack) -> AsyncIterator[Live]:
    async with prepared(services, f"letters_{os.getpid()}") as settings, running(settings) as live:
        await live.publish_workflow("w", DSL)
        yield live
        report = await verify(settings.required_database_url, settings.required_kafka_bootstrap, settings.topic_prefix)
        assert report.clean, report.document()


def workflow() -> str:
    return natural_id(TENANT, "workflow", "w")


async def letter_for(live: Live, message_id: str, *, code: str = "") -> Letter:
    """Wait for the letter of a message."""

    async def look() -> Letter | None:
        letters = await dead_letters.page(live.database, status="", code=code)
        return next((letter for letter in letters if letter.message_id == message_id), None)

    return await until(look)


async def retried(live: Live, letter: Letter) -> Letter:
    return await dead_letters.retry(live.database, live.producer, letter.id, live.settings.commands_partitions)


async def status_of(live: Live, command_id: str) -> str:
    query = "SELECT status FROM command_outcome WHERE command_id = $1"
    return str(await live.database.fetchval(query, command_id))


async def failed_command(live: Live) -> tuple[str, Letter]:
    """A command that Postgres refused: the first event of its run stood there already."""
    id = str(uuid.uuid4())
    lane = partition_of(id, live.settings.commands_partitions)
    await live.database.execute("INSERT INTO event VALUES ($1, 1, $2, 0, 'x', 't1', 1, '', '', '', '', '')", id, lane)
    await live.send(CreateRun(workflow_id=workflow()), id)
    letter = await letter_for(live, id)
    await live.database.execute("DELETE FROM event WHERE aggregate_id = $1", id)
    return id, letter


async def test_a_refused_command_has_a_failed_outcome_and_a_letter_that_says_why(live: Live) -> None:
    id, letter = await failed_command(live)
    assert (letter.code, letter.status, letter.topic, letter.type) == ("poison", "dead", COMMANDS, "runtime.create_run")
    assert "23505" in letter.detail
    assert await status_of(live, id) == "failed"
    await dead_letters.drop(live.database, letter.id)


async def test_a_retried_command_is_handled_and_its_outcome_replaced(live: Live) -> None:
    id, letter = await failed_command(live)
    after = await retried(live, letter)
    assert (after.status, after.redrives) == ("retried", 1)
    assert await live.run_ended(id) == "completed"
    status, body = await live.outcome(id)
    assert (status, body["id"]) == ("succeeded", id)


async def test_a_retry_that_comes_twice_acts_once(live: Live) -> None:
    id, letter = await failed_command(live)
    out = again(letter, live.settings.commands_partitions, 0.0)
    await live.producer.publish([out, out])
    assert await live.run_ended(id) == "completed"
    await live.producer.publish([out])
    await live.do(ExecuteRun(run_id=id))  # The same lane: what was sent before it has been handled.
    started = "SELECT count(*) FROM event WHERE aggregate_id = $1 AND type = 'runtime.run_created'"
    assert await live.database.fetchval(started, id) == 1
    assert await status_of(live, id) == "succeeded"
    await dead_letters.drop(live.database, letter.id)


async def test_a_retry_of_a_command_that_has_succeeded_since_changes_nothing(live: Live) -> None:
    id, letter = await failed_command(live)
    await retried(live, letter)
    assert await live.run_ended(id) == "completed"
    events = "SELECT count(*) FROM event WHERE aggregate_id = $1"
    before = await live.database.fetchval(events, id)
    late = Envelope(id, "runtime.create_run", TENANT, fingerprint="x", redrive=7)
    await live.producer.send(COMMANDS, letter.partition, id, late.headers(), letter.body)
    await live.do(ExecuteRun(run_id=id))
    assert await live.database.fetchval(events, id) == before
    assert await status_of(live, id) == "succeeded"


async def test_a_command_without_retry_is_told_its_failed_outcome_again(live: Live) -> None:
    id, letter = await failed_command(live)
    await live.send(CreateRun(workflow_id=workflow()), id)
    other = await live.send(ExecuteRun(run_id=id))
    assert (await live.outcome(other))[0] == "rejected", "there is no such run"
    assert await status_of(live, id) == "failed"
    await dead_letters.drop(live.database, letter.id)


async def test_a_retry_that_dies_again_is_a_letter_of_its_own_with_the_next_number(live: Live) -> None:
    id, letter = await failed_command(live)
    await live.database.execute(
        "INSERT INTO event VALUES ($1, 1, $2, 0, 'x', 't1', 1, '', '', '', '', '')", id, letter.partition
    )
    await retried(live, letter)

    async def second() -> Letter | None:
        letters = await dead_letters.page(live.database, code="poison")
        return next((each for each in letters if each.message_id == id), None)

    died = await until(second)
    assert died.id != letter.id
    await live.database.execute("DELETE FROM event WHERE aggregate_id = $1", id)
    out = again(died, live.settings.commands_partitions, 0.0)
    assert dict(out.headers)["ce_redrive"] == b"2"
    await retried(live, died)
    assert await live.run_ended(id) == "completed"


async def test_a_misrouted_internal_command_goes_to_its_own_lane(live: Live) -> None:
    run = str((await live.do(CreateRun(workflow_id=workflow())))["id"])
    command, id = ContinueRun(run_id=run), str(uuid.uuid4())
    wrong = (partition_of(run, live.settings.commands_partitions) + 1) % live.settings.commands_partitions
    cause = await live.database.fetchval("SELECT causation_id FROM event WHERE aggregate_id = $1", run)
    headers = Envelope(id, command.type, TENANT, causation_id=cause, reply_partition=0).headers()
    await live.producer.send(COMMANDS, wrong, run, headers, command.encode())
    letter = await letter_for(live, id)
    assert (letter.code, letter.partition) == ("misrouted", wrong)
    out = again(letter, live.settings.commands_partitions, 0.0)
    assert (out.partition, out.key) == (partition_of(run, live.settings.commands_partitions), run)
    assert "ce_replypartition" not in dict(out.headers), "whoever waited has gone"
    await retried(live, letter)
    query = "SELECT redrive FROM inbox WHERE message_id = $1"
    assert await until(lambda: live.database.fetchval(query, id)) == 1


async def test_a_letter_whose_body_was_cut_cannot_be_retried(live: Live) -> None:
    id, body = str(uuid.uuid4()), b"[" * (DEAD_LETTER_BODY_BYTES_MAX + 1)
    await live.producer.send(INGRESS, 0, None, Envelope(id, "runtime.create_run", TENANT).headers(), body)
    letter = await letter_for(live, id)
    assert (letter.whole, len(letter.body)) == (False, DEAD_LETTER_BODY_BYTES_MAX)
    with pytest.raises(NotRetriable, match="bytes of its body were kept"):
        await retried(live, letter)
    assert (await dead_letters.find(live.database, letter.id)).status == "dead"


async def test_the_command_line_lists_shows_retries_and_drops(live: Live) -> None:
    id, letter = await failed_command(live)
    code, text = await ap(live.settings, "dlq", "list", "--json", "--code", "poison", "--limit", "1")
    assert (code, orjson.loads(text)[0]["message_id"]) == (0, id)
    code, text = await ap(live.settings, "dlq", "show", letter.id)
    shown: Any = orjson.loads(text)
    assert (shown["detail"], shown["retriable"]) == (letter.detail, True)
    assert orjson.loads(shown["body"])["workflow_id"] == workflow()
    code, text = await ap(live.settings, "dlq", "retry", letter.id, "--json")
    assert code == 0, text
    assert orjson.loads(text)[0]["status"] == "retried"
    assert await live.run_ended(id) == "completed"
    for action in ("retry", "drop"):
        code, text = await ap(live.settings, "dlq", action, letter.id)
        assert (code, "retried already" in text) == (1, True)
    code, text = await ap(live.settings, "dlq", "drop", str(uuid.uuid4()))
    assert (code, "there is no dead letter" in text) == (1, True)
    audited = "SELECT count(*) FROM gateway_request_audit WHERE path = $1"
    assert await live.database.fetchval(audited, f"/dead-letters/{letter.id}/retry") == 1


async def test_a_record_of_ingress_goes_back_to_ingress_and_keeps_its_command_id(services: EmbeddedStack) -> None:
    """Refused while nobody may publish, accepted once somebody may."""
    async with prepared(services, f"closed_{os.getpid()}", auth_required=True) as settings:
        body = orjson.dumps({"kind": "app", "code": "a", "name": "A"})
        async with running(settings) as closed:
            headers = Envelope("app-1", "catalog.create_definition", TENANT).headers()
            await closed.producer.send(INGRESS, 0, None, headers, body)
            letter = await letter_for(closed, "app-1")
            assert letter.code == "unauthenticated"
        async with running(settings.model_copy(update={"auth_required": False})) as opened:
            await retried(opened, letter)
            status, answer = await opened.outcome(derive(natural_id(TENANT, "command"), "app-1"))
            assert (status, answer["code"]) == ("succeeded", "a")


async def test_what_a_stranger_wrote_does_nothing_at_the_terminal(live: Live) -> None:
    for name, text in CORPUS.items():
        id, raw = f"hostile {name}", text.encode("utf-8", "surrogatepass")
        headers = [("ce_id", id.encode()), ("ce_type", raw), ("ce_tenantid", b"t1"), (escaped(text), raw)]
        await live.producer.send(INGRESS, 0, None, headers, b'{"' + raw + b'": "' + raw + b'"}')

        async def look(wanted: str = id) -> Letter | None:
            letters = await dead_letters.page(live.database, status="", limit=1_000)
            return next((letter for letter in letters if ("ce_id", wanted.encode()) in letter.headers), None)

        letter = await until(look)
        code, said = await ap(live.settings, "dlq", "show", letter.id)
        assert (code, active(said, lines=True), orjson.loads(said)["id"]) == (0, [], letter.id), name
    for arguments in (("dlq", "list", "--limit", "1000"), ("dlq", "list", "--json", "--limit", "1000"), ("lanes",)):
        code, said = await ap(live.settings, *arguments)
        assert (code, active(said, lines=True)) == (0, []), arguments
    _, listed = await ap(live.settings, "dlq", "list", "--limit", "1000")
    *lines, count = listed.rstrip("\n").split("\n")
    assert count == f"{len(lines) // 2} dead letters", "two lines for each, none forged"
