"""Commands that change how much runs: processes of a role, partitions of a topic."""

import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from infra.embedded.failures import StackError
from infra.embedded.state import Scaled, State, Wish, read_state, read_wish, write_wish
from infra.settings import Settings, SettingsError, load_settings

Data = Annotated[Path | None, typer.Option("--data", help="Folder of the embedded services [default: .ap]")]

SCALABLE = ("worker", "executor")
PROCESSES_MAX = 256
ANSWER_SECONDS_MAX = 90.0
IN_ORDER = (0, -signal.SIGTERM)
"""Exit codes of who had nothing left to do, or had not even begun."""


def register(app: typer.Typer) -> None:
    """Add these commands to `ap`."""
    app.command()(scale)


def scale(
    counts: Annotated[list[str], typer.Argument(help="worker=N, executor=N", metavar="ROLE=N...")],
    data: Data = None,
) -> None:
    """Change how many workers and executors a running `ap up` keeps; remembered for its next start."""
    settings = load_settings(data_dir=data)
    wanted = parse_counts(counts)
    done = ask_to_scale(settings.data_dir, wanted)
    for line in _report(done, wanted, settings):
        print(line)
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


def ask_to_scale(data: Path, counts: Mapping[str, int], seconds: float = ANSWER_SECONDS_MAX) -> Scaled:
    """Tell the owner of a data folder what is wanted, and wait until it is so. Raises StackError."""
    owner = _owner(data)
    wish = Wish({**read_wish(data).counts, **counts}, str(uuid.uuid4()))
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


def _owner(data: Path) -> State:
    state = read_state(data)
    if state is None or not state.is_running:
        raise StackError(f"nothing is running in {data}", "start it by `ap up`, which takes --workers and --executors")
    if state.scaled is None:
        raise StackError(f"what runs in {data} cannot be scaled (yet)", "it is starting up, or is no `ap up`")
    return state


def _report(done: Scaled, wanted: Mapping[str, int], settings: Settings) -> list[str]:
    lines = [f"Started {name}." for name in done.started]
    for name, code in done.stopped.items():
        how = "Stopped" if code in IN_ORDER else f"Stopped, not in order (exit code {code}):"
        lines.append(f"{how} {name}.")
    if not lines:
        lines.append("Nothing to do: so many run already.")
    lanes = settings.commands_partitions + settings.ingress_partitions
    if wanted.get("worker", 0) > lanes:
        lines.append(f"There are {lanes} lanes: more workers than that stay without one.")
    if wanted.get("worker") == 0:
        lines.append("Without a worker nothing is decided: commands wait.")
    return lines
