"""Commands about the stack of one data folder and about the settings: status, down, config."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

from infra.cli.terminal import print_json, say
from infra.local.embedded.failures import StackError
from infra.local.embedded.processes import is_alive, signal_process
from infra.local.embedded.state import State, read_state, stop_leftovers
from infra.settings import Settings, mask_password, masked, setting_name, setting_sources, unused_names

STOP_SECONDS_MAX = 60.0


def stop(data: Path) -> str:
    """Ask the owner of a data folder to stop and wait; stop what a dead owner left. Says what was done."""
    state = read_state(data)
    if state is None:
        return f"Nothing is running in {data}."
    if not signal_process(state.owner, signal.SIGTERM):
        left = stop_leftovers(state)
        return f"Stopped {len(left)} processes of a former owner." if left else f"Nothing is running in {data}."
    until = time.monotonic() + STOP_SECONDS_MAX
    while is_alive(state.owner):
        if time.monotonic() > until:
            raise StackError(f"process {state.owner.pid} does not stop", f"kill -9 {state.owner.pid}, then `ap down`")
        time.sleep(0.05)
    return f"Stopped process {state.owner.pid} and everything it had started."


def status_document(data: Path) -> dict[str, Any]:
    """What `ap status --json` says of the processes of a data folder."""
    state = read_state(data)
    document: dict[str, Any] = {
        "data": str(data.absolute()),
        "running": state is not None and state.is_running,
    }
    if state is None:
        return document
    return document | {
        "waiting": state.waiting,
        "owner_pid": state.owner.pid,
        "since": state.since,
        "gateway_url": state.gateway_url,
        "database_url": mask_password(state.database_url) if state.database_url else None,
        "kafka_bootstrap": state.kafka_bootstrap,
        "ports": state.ports,
        "roles": [
            {
                "role": process.role,
                "index": process.index,
                "pid": process.identity.pid,
                "alive": is_alive(process.identity),
                "restarts": process.restarts,
                "metrics_port": process.metrics_port,
                "log": process.log,
            }
            for process in state.processes
        ],
    }


def show_status(settings: Settings, *, as_json: bool, every_lane: bool) -> bool:
    """Print the processes of the data folder and the state of the work; true if it runs and nothing stands still.

    `settings`: with the addresses filled in, or none if nothing is known to run.
    """
    state = read_state(settings.data_dir)
    running = state is not None and state.is_running
    if settings.database_url is None or settings.kafka_bootstrap is None:
        if as_json:
            print_json(status_document(settings.data_dir))
        else:
            say(f"Nothing is running in {settings.data_dir}.")
        return False
    from infra.operate import status

    seen, problems = status.Sample(), list[str]()
    try:
        seen, problems = asyncio.run(status.look(settings))
    except status.NoAnswer as error:
        problems = [str(error)]
    problems += _dead_roles(state) if running and state is not None else []
    if as_json:
        print_json(status_document(settings.data_dir) | status.document(seen, problems))
        return not problems
    if running and state is not None:
        _print_state(state, settings.data_dir)
    for line in status.lines(seen, problems, every_lane=every_lane):
        say(line)
    return not problems


def watch_status(settings: Settings, every_seconds: float, *, every_lane: bool) -> None:
    """Draw the status until Ctrl-C. Raises StackError if nothing is known to run."""
    if settings.database_url is None or settings.kafka_bootstrap is None:
        raise StackError(f"nothing is running in {settings.data_dir}", "start it by `ap up`")
    from infra.local.watch import watch

    asyncio.run(watch(settings, every_seconds, every_lane=every_lane))


def _dead_roles(state: State) -> list[str]:
    return [
        f"{process.role}-{process.index} has ended and is not started again yet"
        for process in state.processes
        if not is_alive(process.identity)
    ]


def _print_state(state: State, data: Path) -> None:
    say(f"Running since {state.since} as process {state.owner.pid} in {data.absolute()}")
    say(f"  {'gateway':<10} {state.gateway_url or 'starting'}")
    say(f"  {'postgres':<10} {mask_password(state.database_url or 'starting')}")
    say(f"  {'kafka':<10} {state.kafka_bootstrap or 'starting'}")
    for process in state.processes:
        alive = "running" if is_alive(process.identity) else "ended"
        restarts = f", started again {process.restarts} times" if process.restarts else ""
        name = f"{process.role}-{process.index}"
        metrics = f", metrics on port {process.metrics_port}" if process.metrics_port else ""
        say(f"  {name:<10} process {process.identity.pid}, {alive}{restarts}{metrics}")
    for name, reason in state.waiting.items():
        say(f"  {name:<10} waits: {reason}")


def show_config(settings: Settings, *, as_json: bool) -> None:
    """Print all settings, one a line: name, value, where it came from, and the default if it is another."""
    sources = setting_sources(settings, {})
    rows = []
    for field, info in Settings.model_fields.items():
        default = "" if info.default is None else str(info.default)
        rows.append((setting_name(field), masked(settings, field), default, sources[field], info.description or ""))
    if as_json:
        keys = ("name", "value", "default", "source", "description")
        document = {"settings": [dict(zip(keys, row, strict=True)) for row in rows], "unused": unused_names()}
        print_json(document)
        return
    width = max(len(row[0]) for row in rows)
    for name, value, default, source, _ in rows:
        origin = source if value == default else f"{source}; default {default or 'none'}"
        say(f"{name:<{width}}  {value or '-':<24}  ({origin})")
