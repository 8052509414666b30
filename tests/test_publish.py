"""Outside programs publish commands to `ingress`; the README shows how, and that is run here."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from infra.history.verify import verify
from infra.local.embedded import EmbeddedStack
from infra.operate.publish import Publication, database_time, outcomes, publish
from schemas.envelope import Headers
from tests.command_line import ap
from tests.live import Live, prepared, running
from tests.patience import patient

pytestmark = [pytest.mark.asyncio(loop_scope="module")]
README = Path(__file__).parent.parent / "README.md"
TYPE = "catalog.create_definition"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(services: EmbeddedStack) -> AsyncIterator[Live]:
    async with prepared(services, f"publish_{os.getpid()}") as settings, running(settings) as live:
        yield live
        report = await verify(settings.required_database_url, settings.required_kafka_bootstrap, settings.topic_prefix)
        assert report.clean, report.document()


def shown(name: str) -> str:
    """The block of the README that is marked so."""
    found = re.search(rf"<!-- publish: {name} -->\n```\w+\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert found, name
    return found[1]


def here(live: Live, source: str) -> str:
    """A shown program with this test's addresses."""
    assert "localhost:9092" in source
    source = source.replace("localhost:9092", live.settings.required_kafka_bootstrap)
    return re.sub(r"\bingress\b", f"{live.settings.topic_prefix}ingress", source)


async def became(live: Live, id: str, tenant: str = "t1") -> tuple[str, Any]:
    return await live.outcome(Publication(TYPE, b"", id, tenant).command_id)


async def test_the_program_that_the_readme_shows(live: Live, tmp_path: Path) -> None:
    program = tmp_path / "publish.py"
    program.write_text(here(live, shown("python")))
    process = await asyncio.create_subprocess_exec(sys.executable, program)
    assert await process.wait() == 0
    status, body = await became(live, "shop-1")
    assert (status, body["name"]) == ("succeeded", "Shop")


async def test_the_line_for_the_console_producer_that_the_readme_shows(live: Live) -> None:
    """Read as that tool reads it: headers up to the delimiter, then the value."""
    call, line = here(live, shown("console")).replace("\\\n", "").split("<<'END'\n")
    options = shlex.split(call)
    properties = dict(option.split("=", 1) for option in options if "=" in option)
    assert properties["parse.headers"] == "true"
    given, value = line.removesuffix("\nEND\n").split(properties["headers.delimiter"], 1)
    headers: Headers = [(name, text.encode()) for name, text in (pair.split(":", 1) for pair in given.split(","))]
    bootstrap = options[options.index("--bootstrap-server") + 1]
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        await producer.send_and_wait(options[options.index("--topic") + 1], value.encode(), headers=headers)
    status, body = await became(live, "shop-2")
    assert (status, body["name"]) == ("succeeded", "Second shop")


async def test_the_command_that_the_readme_shows(live: Live) -> None:
    program, *arguments = shlex.split(shown("ap"))
    assert program == "ap"
    code, text = await ap(live.settings, *arguments)
    assert code == 0, text
    answer = orjson.loads(text)
    assert (answer["id"], answer["status"], answer["body"]["name"]) == ("shop-3", "succeeded", "Third")


async def test_the_command_id_is_what_the_readme_says(live: Live) -> None:
    formula = re.search(r"`(uuid5\(uuid5\(.*?\))`", README.read_text("utf-8"))
    assert formula
    said = eval(formula[1], {"uuid5": uuid.uuid5, "UUID": uuid.UUID})  # noqa: S307  # The README's own words.
    assert str(said) == Publication(TYPE, b"", "shop-1", "t1").command_id


def app_called(code: str) -> str:
    return orjson.dumps({"kind": "app", "code": code, "name": code}).decode()


async def test_the_id_is_printed_and_the_same_id_again_changes_nothing(live: Live) -> None:
    for body in (app_called("once"), app_called("once")):
        code, text = await ap(live.settings, "publish", TYPE, "--tenant", "t1", "--id", "once", "--data", body)
        assert code == 0, text
        assert text.strip() == Publication(TYPE, b"", "once", "t1").command_id
    assert (await became(live, "once"))[0] == "succeeded"


async def test_several_records_have_ids_of_their_own(live: Live) -> None:
    call = ["publish", "runtime.create_run", "--tenant", "t1", "--id", "many", "--count", "3", "--wait"]
    code, text = await ap(live.settings, *call, "--data", orjson.dumps({"workflow_id": str(uuid.uuid4())}).decode())
    answers = [orjson.loads(line) for line in text.splitlines()]
    assert [answer["id"] for answer in answers] == ["many-1", "many-2", "many-3"]
    assert (code, {answer["status"] for answer in answers}) == (1, {"rejected"})
    assert answers[0]["body"]["status"] == 422


async def test_the_body_comes_from_a_file_or_from_standard_input(live: Live, tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text(app_called("filed"))
    for source, given, id in ((f"@{tmp_path}/body.json", None, "filed"), ("-", app_called("piped").encode(), "piped")):
        call = ["publish", TYPE, "--tenant", "t1", "--id", id, "--data", source, "--wait"]
        code, text = await ap(live.settings, *call, given=given)
        assert code == 0, text
        assert orjson.loads(text)["body"]["code"] == id


async def test_without_a_tenant_it_is_the_public_one(live: Live) -> None:
    code, text = await ap(live.settings, "publish", TYPE, "--id", "open", "--data", app_called("open"), "--wait")
    assert code == 0, text
    assert (await became(live, "open", "public"))[1]["tenant_id"] == "public"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no.such"], "no public command"),
        (["runtime.fail_run"], "no public command"),
        ([TYPE, "--data", "{"], "invalid_json"),
        ([TYPE, "--data", '{"kind": NaN}'], "invalid_json"),
        ([TYPE, "--data", '{"kind": "app", "code": "a\\u0000", "name": "x"}'], "nul_character"),
        ([TYPE, "--data", '{"kind": "app", "more": 1}'], "/code: Field required; /name: Field required; /more: Extra"),
        ([TYPE, "--data", app_called("x"), "--id", "店"], "ce_id must be"),
        ([TYPE, "--data", app_called("x"), "--id", "x" * 127, "--count", "10"], "ce_id must be"),
    ],
)
async def test_what_would_be_refused_is_not_sent(live: Live, arguments: list[str], says: str) -> None:
    code, text = await ap(live.settings, "publish", *arguments)
    assert (code, says in text) == (2, True), text


async def test_a_record_that_is_refused_all_the_same_says_why(live: Live) -> None:
    """What another release publishes: this one would not send it."""
    since = await database_time(live.settings)
    record = Publication(TYPE, app_called("x").encode(), "a b", "t1")
    await publish(live.settings, [record])
    (answer,) = await outcomes(live.settings, [record], since=since, seconds=patient(30))
    assert (answer["status"], answer["body"]["code"]) == ("refused", "malformed_header")
