"""Commands that change how much runs: processes of a role, partitions of a topic."""

import asyncio
import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from infra.cli.terminal import print_json, say
from infra.local.embedded.failures import StackError
from infra.local.embedded.state import Scaled, State, Wish, read_state, read_wish, write_wish
from infra.settings import Settings, SettingsError, load_settings, setting_name

topics = typer.Typer(help="Topics: list, grow.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder of the embedded services [default: .ap]")]

SCALABLE = ("worker", "executor")
PROCESSES_MAX = 256
ANSWER_SECONDS_MAX = 90.0
IN_ORDER = (0, -signal.SIGTERM)
"""Exit codes of who had nothing left to do, or had not even begun."""


def register(app: typer.Typer) -> None:
    """Add these commands to `ap`."""
    app.command()(scale)
    app.add_typer(topics, name="topics")


def scale(
    counts: Annotated[list[str], typer.Argument(help="worker=N, executor=N", metavar="ROLE=N...")],
    data: Data = None,
) -> None:
    """Change how many workers and executors a running `ap up` keeps; remembered for its next start."""
    settings = load_settings(data_dir=data)
    wanted = parse_counts(counts)
    done = ask_to_scale(settings.data_dir, wanted)
    for line in report(done):
        say(line)
    if "worker" in wanted and (said := asyncio.run(warning(wanted["worker"], _attached(data).required_database_url))):
        say(said)
    if any(code not in IN_ORDER for code in done.stopped.values()):
        raise typer.Exit(1)


def parse_counts(words: Sequence[str]) -> dict[str, int]:
    """Counts by role of `worker=4 executor=2`. Raises SettingsError naming each word that is wrong."""
    counts: dict[str, int] = {}
    problems = []
    for word in words:
        role, separator, number = word.partition("=")
        if role == "gateway":
            problems.append(
                f"{word}: `ap up` keeps one gateway, at one address; further ones are started by `ap gateway`, "
                "each with its own AGENT_PLATFORM_GATEWAY_INSTANCE and --port"
            )
        elif role not in SCALABLE or not separator:
            problems.append(f"{word}: expected worker=N or executor=N")
        elif not number.isascii() or not number.isdigit() or int(number) > PROCESSES_MAX:
            problems.append(f"{word}: the number must be from 0 to {PROCESSES_MAX}")
        elif role in counts:
            problems.append(f"{word}: {role} is given twice")
        else:
            counts[role] = int(number)
    if problems:
        raise SettingsError(problems)
    return counts


def ask_to_scale(
    data: Path, counts: Mapping[str, int], *, paused: bool = False, seconds: float = ANSWER_SECONDS_MAX
) -> Scaled:
    """Tell the owner of a data folder what is wanted, and wait until it is so. Raises StackError."""
    owner = _owner(data)
    wish = Wish({**read_wish(data).counts, **counts}, str(uuid.uuid4()), paused)
    write_wish(data, wish)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)
        state = read_state(data)
        if state is None or not state.is_running or state.owner != owner.owner:
            raise StackError(f"`ap up` on {data} stopped meanwhile", "the numbers are remembered for its next start")
        if state.scaled is not None and state.scaled.request == wish.request:
            return state.scaled
        if read_wish(data).request != wish.request:
            raise StackError("somebody else asked for other numbers at the same time", "see `ap status`")
    raise StackError(
        f"`ap up` (process {owner.owner.pid}) has not done it within {seconds:g} s", "see what it says, and `ap status`"
    )


@topics.command("list")
def topics_list(data: Data = None, as_json: AsJson = False) -> None:
    """Show every topic with its partitions, as the broker has them and as Postgres has recorded them."""
    from infra.operate.topic_growth import listed

    found = asyncio.run(listed(_attached(data)))
    if as_json:
        print_json([asdict(each) for each in found])
        return
    for each in found:
        recorded = "" if each.recorded in (None, each.partitions) else f", {each.recorded} recorded: being grown"
        say(f"{each.topic:<16} {each.partitions:>5} partitions{recorded}, kept {_days(each.retention_seconds)}")


@topics.command("grow")
def topics_grow(
    topic: Annotated[str, typer.Argument(help="commands or ingress")],
    partitions: Annotated[int, typer.Argument(help="How many it shall have")],
    restart: Annotated[
        bool, typer.Option("--restart", help="Stop what `ap up` runs for the moment, and start it again")
    ] = False,
    data: Data = None,
) -> None:
    """Give a topic more partitions: `commands` while no worker, executor or gateway runs, `ingress` at any time."""
    from infra.operate.topic_growth import GrowthRefused, grow

    settings = _attached(data)
    pausing = restart and topic == "commands"
    if pausing:
        ask_to_scale(settings.data_dir, {}, paused=True)
    try:
        done = asyncio.run(grow(settings, topic, partitions))
    except GrowthRefused as refused:
        if pausing:
            ask_to_scale(settings.data_dir, {})
        raise StackError(str(refused)) from None
    except BaseException:  # Nobody may start between the old number and the new one: see infra.topics.check.
        if pausing:
            say("Interrupted: what was stopped stays stopped until `ap topics grow --restart` has finished it.")
        raise
    if pausing:
        ask_to_scale(settings.data_dir, {})
    if topic in ("commands", "ingress") and f"{topic}_partitions" in settings.model_fields_set:
        say(f"Note: {setting_name(f'{topic}_partitions')} is set: set it to {done.after}, or leave it out.")
    say(f"Topic {done.topic} has {done.after} partitions, {done.before} before.")
    if done.topic == "commands":
        say(
            f"Moved {done.moved} records not handled yet, {done.timers} timers, {done.aggregates} aggregates;"
            f" sent {done.sent} records that waited."
        )
    else:
        say("Workers find the new partitions within five minutes, or when they are started again.")


def _attached(data: Path | None) -> Settings:
    from infra.cli.terminal import attach

    return attach(load_settings(data_dir=data))


def _days(seconds: int) -> str:
    return f"{seconds // 86_400} days" if seconds >= 86_400 else f"{seconds // 60} minutes"


def _owner(data: Path) -> State:
    state = read_state(data)
    if state is None or not state.is_running:
        raise StackError(f"nothing is running in {data}", "start it by `ap up`, which takes --workers and --executors")
    if state.scaled is None:
        raise StackError(f"what runs in {data} cannot be scaled (yet)", "it is starting up, or is no `ap up`")
    return state


def report(done: Scaled) -> list[str]:
    """What was done, a line each."""
    lines = [f"Started {name}." for name in done.started]
    for name, code in done.stopped.items():
        how = "Stopped" if code in IN_ORDER else f"Stopped, not in order (exit code {code}):"
        lines.append(f"{how} {name}.")
    return lines or ["Nothing to do: so many run already."]


async def warning(workers: int, database_url: str) -> str:
    """What so many workers mean for the lanes there are; "" if nothing need be said."""
    import asyncpg

    from infra.db import session

    if workers == 0:
        return "Without a worker nothing is decided: commands wait."
    try:
        connection = await asyncpg.connect(database_url, server_settings=session(database_url))
        try:
            lanes = await connection.fetchval("SELECT count(*) FROM lane")
        finally:
            await connection.close()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return f"The lanes could not be counted: {error}"
    return f"There are {lanes} lanes: more workers than that stay without one." if workers > lanes else ""
