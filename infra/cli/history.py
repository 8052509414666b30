"""Commands about the past: rebuild projections, replay topics, follow and export events."""

import contextlib
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from infra.cli.terminal import (
    attached_settings,
    binary_output,
    complain,
    json_lines,
    print_json,
    remark,
    run_or_exit,
    say,
    somebody_watches,
)

T = TypeVar("T")
Data = Annotated[Path | None, typer.Option("--data", help="Folder of the embedded services [default: .ap]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]
Types = Annotated[list[str] | None, typer.Option("--type", help="Only these, such as 'runtime.run_*'; repeatable")]
Aggregates = Annotated[list[str] | None, typer.Option("--aggregate", help="Only of this aggregate; repeatable")]
Tenant = Annotated[str, typer.Option("--tenant", help="Only of this tenant")]
SHOWN_MAX = 20

events = typer.Typer(help="The event log: export it.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to `ap`."""
    app.command()(rebuild)
    app.command()(replay)
    app.command()(tail)
    app.add_typer(events, name="events")


def _a_domain(name: str | None) -> str | None:
    from infra.domains import DOMAINS

    known = [domain.name for domain in DOMAINS]
    if name is not None and name not in known:
        raise typer.BadParameter(f"no domain is called {name}; there are {', '.join(known)}")
    return name


def rebuild(
    only: Annotated[
        str | None, typer.Option(metavar="DOMAIN", callback=_a_domain, help="Only its tables: 'runtime', for one")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit code 1 if something differs")] = False,
    target: Annotated[str, typer.Option(metavar="SCHEMA", help="Fill the tables of a new schema instead")] = "",
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Fold the event log anew, compare the projection tables with it, and repair what differs."""
    from infra.history import rebuild as rebuilding

    if check and target:
        complain("--check compares the tables in use; --target fills others: choose one")
        raise typer.Exit(2)
    settings = attached_settings(data)
    try:
        with _bar() as show:
            report = run_or_exit(
                rebuilding.rebuild(
                    settings.required_database_url,
                    only=only,
                    check=check,
                    target=target,
                    lease_seconds=settings.lease_seconds,
                    on_progress=show,
                )
            )
    except rebuilding.TargetRefused as error:
        complain(str(error))
        raise typer.Exit(2) from None
    if as_json:
        print_json(report.document())
    else:
        _print_rebuilt(report, target)
    if report.unfoldable or (check and not report.equal):
        raise typer.Exit(1)


def _print_rebuilt(report: Any, target: str) -> None:
    rate = f"{report.events_per_second:,.0f}".replace(",", " ")
    say(f"{report.events} events of {report.aggregates} aggregates folded in {report.seconds:.1f} s: {rate} events/s")
    rows = ", ".join(f"{count} {table}" for table, count in report.rows.items()) or "none"
    say(f"rows written to schema {target}: {rows}" if target else f"rows compared: {rows}")
    different = sum(report.different.values())
    if not target:
        say(f"{different} rows differ" + (":" if different else ""))
    for difference in report.differences[:SHOWN_MAX]:
        say(f"  {difference}")
    if different > SHOWN_MAX:
        say(f"  and {different - SHOWN_MAX} more (--json shows the first {len(report.differences)})")
    for id, reason in list(report.unfoldable.items())[:SHOWN_MAX]:
        say(f"  {id} cannot be folded: {reason}")
    if report.held_seconds:
        repaired = ", ".join(f"{count} {table}" for table, count in report.repaired.items()) or "nothing"
        longest = max(report.held_seconds) * 1_000
        say(f"repaired: {repaired}; lanes held {len(report.held_seconds)} times, at most {longest:.0f} ms each")
    for note in report.notes:
        say(f"note: {note}")


@contextlib.contextmanager
def _bar() -> Iterator[Any]:
    """A bar with the rate, where somebody watches."""
    if not somebody_watches():
        yield lambda progress: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from infra.local.console import SafeConsole

    columns = TextColumn("folding"), BarColumn(), TextColumn("{task.fields[rate]} events/s"), TimeRemainingColumn()
    with Progress(*columns, console=SafeConsole(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, rate="")

        def show(progress: Any) -> None:
            rate = progress.events / progress.seconds if progress.seconds else 0.0
            bar.update(task, completed=progress.fraction, rate=f"{rate:,.0f}".replace(",", " "))

        yield show


def replay(
    where: Annotated[
        str,
        typer.Argument(
            metavar="PATH|TOPIC|MODULE:FUNCTION", help="The file (- for standard output), topic or function"
        ),
    ],
    to: Annotated[Literal["file", "topic", "handler"], typer.Option("--to", help="What that is")] = "file",
    topic: Annotated[str, typer.Option("--topic", help="Which topic to read")] = "events",
    since: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="PLACE",
            help="earliest, latest (new records only, until Ctrl-C), an RFC 3339 time, or PARTITION:OFFSET,...",
        ),
    ] = "earliest",
    until: Annotated[
        str,
        typer.Option(
            "--until",
            metavar="PLACE",
            help="Where to stop: a time, or PARTITION:OFFSET,... [default: the end as it is now]",
        ),
    ] = "",
    type: Types = None,
    aggregate: Aggregates = None,
    tenant: Tenant = "",
    group: Annotated[
        str, typer.Option("--group", help="Remember how far it came under this name of a consumer group")
    ] = "",
    rate: Annotated[float, typer.Option("--rate", min=0, help="At most so many records a second")] = 0.0,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Read a topic again and hand its records to a file, another topic, or a function; nothing is executed."""
    from infra.history import replay as replaying

    settings = attached_settings(data)
    bootstrap, prefix = settings.required_kafka_bootstrap, settings.topic_prefix
    _known_topic(topic)
    if since == "latest" and until:
        complain("--from latest goes on until Ctrl-C: there is no --until for it")
        raise typer.Exit(2)

    async def work() -> Any:
        destination: Any
        match to:
            case "file":
                destination = replaying.FileDestination(where)
            case "topic":
                destination = replaying.TopicDestination(bootstrap, prefix, where, prefix + topic)
            case "handler":
                destination = replaying.HandlerDestination.named(where)
        return await replaying.replay(
            bootstrap, prefix, topic, destination,
            since=replaying.From.parse(since), until=replaying.Until.parse(until),
            selection=_selection(type, aggregate, tenant), group=group, rate=rate, follow=since == "latest",
        )  # fmt: skip

    report = _refusable(work())
    if as_json:
        (remark if where == "-" else say)(*json_lines(report.document()))
    else:
        again = f", going on where group {group} stood" if report.resumed else ""
        remark(f"{report.taken} of {report.read} records handed on{again}")


def tail(
    type: Types = None,
    tenant: Tenant = "",
    aggregate: Aggregates = None,
    as_json: Annotated[bool, typer.Option("--json", help="One CloudEvent as JSON a line")] = False,
    data: Data = None,
) -> None:
    """Follow the events topic, one line for each event, until Ctrl-C."""
    from infra.history import replay as replaying

    settings = attached_settings(data)
    printed = replaying.Printed(say, as_json=as_json)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _refusable(
            replaying.replay(
                settings.required_kafka_bootstrap, settings.topic_prefix, "events", printed,
                since=replaying.From("latest"), selection=_selection(type, aggregate, tenant), follow=True,
            )
        )  # fmt: skip


@events.command("export")
def events_export(
    since: Annotated[str, typer.Option("--from", metavar="SEQ|TIME", help="The first seq, or RFC 3339 time")] = "",
    until: Annotated[str, typer.Option("--to", metavar="SEQ|TIME", help="The last seq, or time")] = "",
    type: Types = None,
    tenant: Tenant = "",
    aggregate: Aggregates = None,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Where to write")] = "-",
    data: Data = None,
) -> None:
    """Write events of the log as CloudEvents, one JSON document a line, aggregate by aggregate."""
    from infra.history import replay as replaying
    from infra.history.replay.cloud_events import line

    settings = attached_settings(data)

    async def work() -> tuple[int, list[str]]:
        bounds = replaying.ExportRange.parse(since, until)
        chosen = _selection(type, aggregate, tenant)
        count = 0
        with contextlib.nullcontext(binary_output()) if out == "-" else replaying.open_file(Path(out)) as file:
            async for event in replaying.export(settings.required_database_url, chosen, bounds):
                file.write(line(event))
                count += 1
            file.flush()
        return count, await replaying.removed(settings.required_database_url, chosen)

    count, gone = _refusable(work())
    remark(f"{count} events")
    for note in gone:
        remark(f"note: {note}")


def _selection(types: list[str] | None, aggregates: list[str] | None, tenant: str) -> Any:
    from infra.history.replay import Selection

    return Selection(tuple(types or ()), tuple(each.lower() for each in aggregates or ()), tenant)


def _known_topic(name: str) -> None:
    from schemas.topics import TOPICS

    known = [topic.name for topic in TOPICS]
    if name not in known:
        complain(f"there is no topic {name!r}; there are {', '.join(known)}")
        raise typer.Exit(2)


def _refusable(work: Coroutine[Any, Any, T]) -> T:
    """The answer; what it refuses is one line and exit code 2, what a handler raises one line and exit code 1."""
    from infra.history.replay import HandlerFailed, ReplayRefused

    try:
        return run_or_exit(work)
    except ReplayRefused as error:
        complain(str(error))
        raise typer.Exit(2) from None
    except HandlerFailed as error:
        complain(f"the handler failed at {error}")
        raise typer.Exit(1) from None
