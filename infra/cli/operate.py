"""Commands for who runs the platform: verify, dead letters, lanes, publishing, schemas."""

import getpass
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from infra.cli.terminal import attached_settings, complain, print_json, run_or_exit, say
from infra.escaping import escaped_json
from infra.settings import Settings

T = TypeVar("T")
Data = Annotated[Path | None, typer.Option("--data", help="Folder of the embedded services [default: .ap]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]
Force = Annotated[bool, typer.Option("--force", help="Also if the lane is not stopped")]
LaneName = Annotated[str, typer.Argument(help="commands/N or ingress/N", metavar="LANE")]
LetterIds = Annotated[list[str], typer.Argument(help="Ids of dead letters", metavar="ID...")]

dlq = typer.Typer(help="Dead letters: list, show, retry, drop.", no_args_is_help=True)
lanes = typer.Typer(help="Lanes: how they stand, adopt a topic made anew, skip a record.")


def register(app: typer.Typer) -> None:
    """Add these commands to `ap`."""
    app.command()(verify)
    app.command()(publish)
    app.command()(schema)
    app.add_typer(dlq, name="dlq")
    app.add_typer(lanes, name="lanes")


def verify(data: Data = None, as_json: AsJson = False) -> None:
    """Check every invariant on a live or resting system. Exit code 1 if one does not hold."""
    from infra.history.verify import INVARIANTS
    from infra.history.verify import verify as examine

    settings = attached_settings(data)
    report = run_or_exit(
        examine(
            settings.required_database_url,
            settings.required_kafka_bootstrap,
            settings.topic_prefix,
            lease_seconds=settings.lease_seconds,
        )
    )
    if as_json:
        print_json(report.document())
    else:
        for name, meaning in INVARIANTS.items():
            found = report.found[name]
            say(f"{name:<4} {'holds' if not found else f'BROKEN {found} times':<16} {meaning}")
            for problem in report.violations[name]:
                say(f"       {problem}")
        say("checked: " + ", ".join(f"{count} {what}" for what, count in sorted(report.checked.items())))
        for note in report.notes:
            say(f"note: {note}")
    if not report.clean:
        raise typer.Exit(1)


def publish(
    name: Annotated[str, typer.Argument(help="Name of a public command", metavar="TYPE")],
    body: Annotated[str, typer.Option("--data", help="The command: JSON, @file, or - for standard input")] = "{}",
    id: Annotated[str, typer.Option("--id", help="ce_id; the same again changes nothing [default: a new one]")] = "",
    tenant: Annotated[str, typer.Option("--tenant", help="ce_tenantid")] = "public",
    key: Annotated[str, typer.Option("--key", help="Key of the record; order holds per key")] = "",
    actor: Annotated[str, typer.Option("--actor", help="ce_actor")] = "",
    count: Annotated[int, typer.Option("--count", min=1, max=100_000, help="How many records")] = 1,
    wait: Annotated[bool, typer.Option("--wait", help="Print what became of each; exit code 1 if one failed")] = False,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="How long to wait")] = 30.0,
    folder: Annotated[Path | None, typer.Option("--folder", help="Folder of the embedded services")] = None,
) -> None:
    """Publish a command to topic `ingress` and print its command id."""
    from infra.operate import publish as publishing
    from schemas.envelope import Malformed

    settings = attached_settings(folder)
    try:
        records = publishing.publications(name, _body(body), id=id, tenant_id=tenant, key=key, actor=actor, count=count)
    except Malformed as error:
        complain(str(error))
        raise typer.Exit(2) from None

    async def send() -> list[dict[str, Any]]:
        since = await publishing.database_time(settings) if wait else 0.0
        await publishing.publish(settings, records)
        if not wait:
            return []
        return await publishing.outcomes(settings, records, since=since, seconds=seconds)

    became = run_or_exit(send())
    for record in records if not wait else ():
        say(record.command_id)
    for each in became:
        say(escaped_json(each))
    if any(each["status"] != "succeeded" for each in became):
        raise typer.Exit(1)


def schema(
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write one file for each schema")] = None,
) -> None:
    """Export the wire contract as JSON Schema: envelope, commands, events, workflow DSL."""
    from infra.cli import json_schema

    if out is None:
        print_json(json_schema.documents())
    else:
        say(f"{json_schema.write(out)} schemas in {out}")


@dlq.command("list")
def dlq_list(
    status: Annotated[Literal["dead", "retried", "dropped", "all"], typer.Option(help="Which letters")] = "dead",
    code: Annotated[str, typer.Option(help="Only those with this reason")] = "",
    tenant: Annotated[str, typer.Option(help="Only this tenant's")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the newest first."""
    from bus import dead_letters

    async def read(connection: Any) -> list[Any]:
        chosen = "" if status == "all" else status
        return await dead_letters.page(connection, status=chosen, code=code, tenant_id=tenant, limit=limit)

    letters = [dead_letters.shown(letter) for letter in _with_database(attached_settings(data), read)]
    if as_json:
        print_json(letters)
        return
    for letter in letters:
        place = f"{letter['topic']}/{letter['partition']}@{letter['offset']}"
        say(f"{letter['id']}  {letter['at']}  {letter['status']:<7}  {letter['code']:<18} {place}  {letter['type']}")
        say(f"    {letter['detail']}")
    say(f"{len(letters)} dead letters")


@dlq.command("show")
def dlq_show(id: Annotated[str, typer.Argument(metavar="ID")], data: Data = None) -> None:
    """Show one dead letter with its headers and body as JSON."""
    from bus import dead_letters

    letter = _with_database(attached_settings(data), lambda connection: dead_letters.find(connection, _uuid(id)))
    print_json(dead_letters.shown(letter, with_body=True))


@dlq.command("retry")
def dlq_retry(ids: LetterIds, data: Data = None, as_json: AsJson = False) -> None:
    """Send dead letters to their lanes again under their own ids."""
    from bus import dead_letters
    from bus.producer import Producer
    from infra.topics import as_recorded

    settings = attached_settings(data)

    async def again(connection: Any) -> list[Any]:
        partitions = (await as_recorded(settings)).commands_partitions
        producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix)
        try:
            await producer.start()
            found = []
            for id in ids:
                async with connection.transaction():
                    letter = await dead_letters.retry(connection, producer, _uuid(id), partitions)
                    await _audit(connection, letter, "retry")
                found.append(letter)
            return found
        finally:
            await producer.stop()

    _print_letters(_with_database(settings, again), as_json)


@dlq.command("drop")
def dlq_drop(ids: LetterIds, data: Data = None, as_json: AsJson = False) -> None:
    """Decide that dead letters are not worth another try; they stay listed as dropped."""
    from bus import dead_letters

    async def dropped(connection: Any) -> list[Any]:
        found = []
        for id in ids:
            async with connection.transaction():
                letter = await dead_letters.drop(connection, _uuid(id))
                await _audit(connection, letter, "drop")
            found.append(letter)
        return found

    _print_letters(_with_database(attached_settings(data), dropped), as_json)


@lanes.callback(invoke_without_command=True)
def lanes_alone(context: typer.Context, data: Data = None, as_json: AsJson = False) -> None:
    """Show every lane unless told to do more."""
    if context.invoked_subcommand is None:
        lanes_list(data, as_json)


@lanes.command("list")
def lanes_list(data: Data = None, as_json: AsJson = False) -> None:
    """Show every lane: where it stands, where its topic ends, and why it is stopped."""
    from infra.operate import lanes as lane_operations

    _print_lanes(run_or_exit(lane_operations.standings(attached_settings(data))), as_json)


@lanes.command("adopt")
def lanes_adopt(
    lane: LaneName,
    at: Annotated[Literal["begin", "end", "here"], typer.Option(help="Where the lane goes on")] = "begin",
    force: Force = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Accept a lane's topic as it is now: go on from its begin (nothing is missed), its end, or from here."""
    from infra.operate import lanes as lane_operations

    settings = attached_settings(data)
    standing = _operate(lambda: lane_operations.adopt(settings, lane_operations.lane_id(lane), at, force=force))
    _print_lanes([standing], as_json)


@lanes.command("resend")
def lanes_resend(data: Data = None) -> None:
    """Send all events of the log again, as when topic `events` was lost; only while no worker runs."""
    from infra.operate import lanes as lane_operations

    settings = attached_settings(data)
    events = _operate(lambda: lane_operations.resend(settings))
    say(f"{events} events go out again when workers claim their lanes")


@lanes.command("skip")
def lanes_skip(lane: LaneName, force: Force = False, data: Data = None, as_json: AsJson = False) -> None:
    """Step over the one record that a stopped lane stands at; it becomes a dead letter."""
    from infra.operate import lanes as lane_operations

    settings = attached_settings(data)
    standing, letter = _operate(lambda: lane_operations.skip(settings, lane_operations.lane_id(lane), force=force))
    if as_json:
        print_json(standing.document() | {"dead_letter": letter.id})
        return
    _print_lanes([standing], as_json)
    say(f"the record is dead letter {letter.id}")


def _with_database(settings: Settings, act: Any) -> Any:
    """The answer of `act(connection)`; what it refuses is one line and exit code 1."""
    import asyncpg

    from bus.dead_letters import LetterNotFound, NotRetriable
    from infra.db import session

    async def connected() -> Any:
        url = settings.required_database_url
        connection = await asyncpg.connect(url, server_settings=session(url))
        try:
            return await act(connection)
        finally:
            await connection.close()

    try:
        return run_or_exit(connected())
    except (LetterNotFound, NotRetriable) as error:
        complain(str(error))
        raise typer.Exit(1) from None


def _operate(act: Any) -> Any:
    from infra.operate.lanes import LaneRefused

    async def acting() -> Any:
        return await act()

    try:
        return run_or_exit(acting())
    except LaneRefused as error:
        complain(str(error))
        raise typer.Exit(1) from None


async def _audit(connection: Any, letter: Any, action: str) -> None:
    """Who did what to a dead letter stands with the requests."""
    id, path = str(uuid.uuid4()), f"/dead-letters/{letter.id}/{action}"
    await connection.execute(
        "INSERT INTO gateway_request_audit (id, tenant_id, user_id, method, path, route, status_code, duration_ms,"
        " request_id, created_at) VALUES ($1::uuid, $2, $3, 'CLI', $4, $5, 200, 0, $6,"
        " extract(epoch FROM clock_timestamp()))",
        id,
        letter.tenant_id,
        getpass.getuser(),
        path,
        f"ap dlq {action}",
        id,
    )


def _uuid(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        complain(f"{value!r} is no id of a dead letter")
        raise typer.Exit(2) from None


def _body(value: str) -> bytes:
    if value == "-":
        return sys.stdin.buffer.read()
    if value.startswith("@"):
        return Path(value[1:]).read_bytes()
    return value.encode("utf-8", "surrogateescape")


def _print_letters(letters: Iterable[Any], as_json: bool) -> None:
    from bus import dead_letters

    shown = [dead_letters.shown(letter) for letter in letters]
    if as_json:
        print_json(shown)
        return
    for letter in shown:
        say(f"{letter['id']}  {letter['status']}  {letter['type']}  {letter['message_id']}")


def _print_lanes(standings: Iterable[Any], as_json: bool) -> None:
    if as_json:
        print_json([standing.document() for standing in standings])
        return
    for each in standings:
        why = f"  stopped: {each.stopped}" if each.stopped else ""
        say(f"{each.name:<12} at {each.next_offset} of {each.begin}..{each.end}, epoch {each.epoch}{why}")
