"""The command `ap chaos`: faults under load on a stack of its own, and a report of what became of every run."""

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli.terminal import print_json, say
from infra.settings import Settings, load_settings

app = typer.Typer(invoke_without_command=True)

Seed = Annotated[int, typer.Option(help="Chooses victims and times")]
Keep = Annotated[Path | None, typer.Option("--data", help="Folder to use and keep [default: a temporary one]")]


@app.callback()
def chaos(
    context: typer.Context,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long each seed's faults go on")] = 5.0,
    rate: Annotated[float, typer.Option(min=0.1, help="Runs started a second")] = 12.0,
    seed: Seed = 1,
    seeds: Annotated[str, typer.Option(help="Several seeds, 1,2,3: one after the other, judged together")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="End with the report as JSON")] = False,
    control: Annotated[
        str, typer.Option(help="Turn off a defence instead, or all one by one: each must be missed")
    ] = "",
    data: Keep = None,
) -> None:
    """Inject faults of every kind under load on a stack of its own; verify that nothing is lost or doubled."""
    if context.invoked_subcommand is not None:
        return
    if control:
        _control(control, seed, as_json, data)
        return
    from infra.chaos.mix import mix_test
    from infra.chaos.several import Several

    report = Several()
    for each in _numbers(seeds) or [seed]:
        with _stack(data / f"seed-{each}" if data and seeds else data) as settings:
            found = asyncio.run(mix_test(settings, seconds=minutes * 60, runs_per_second=rate, seed=each, say=say))
        report.add(found)
        say(f"seed {each}: {found.conclusion.summary}")
    say(*report.table().split("\n"))
    if as_json:
        print_json(report.document())
    if report.problems:
        raise typer.Exit(1)


def _control(names: str, seed: int, as_json: bool, data: Path | None) -> None:
    from infra.chaos.control import ARMS, control_test

    chosen = tuple(ARMS) if names == "all" else _names(names, tuple(ARMS), "--control")
    with contextlib.ExitStack() as stacks:

        def settings(name: str) -> Settings:
            return stacks.enter_context(_stack(data / name.replace(" ", "-") if data else None))

        report = asyncio.run(control_test(settings, chosen, seed=seed, say=say))
    say(*report.table().split("\n"))
    if as_json:
        print_json(report.document())
    if not report.passed:
        raise typer.Exit(1)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers", param_hint="--seeds") from None


@app.command()
def kill(
    runs: Annotated[int, typer.Option(min=1, help="Runs to start, evenly over time")] = 2_000,
    seconds: Annotated[float, typer.Option(min=5, help="How long to start runs")] = 150.0,
    kills: Annotated[int | None, typer.Option(min=0, help="kill -9 in that time [default: one every 4.6 s]")] = None,
    servers: Annotated[bool, typer.Option(help="Also kill Kafka and cut Postgres, once each")] = True,
    victims: Annotated[str, typer.Option(help="Processes to kill")] = "worker-0,worker-1,executor-0,gateway-0",
    via: Annotated[str, typer.Option(help="How runs are started")] = "http,commands,ingress",
    seed: Seed = 1,
    data: Keep = None,
) -> None:
    """Kill workers, executor and gateway by kill -9, Kafka and Postgres once each, under a steady load."""
    from infra.chaos.kill import VICTIMS, Plan, kill_test
    from infra.chaos.workload import VIAS

    plan = Plan(
        runs=runs,
        seconds=seconds,
        seed=seed,
        kills=int(seconds / 4.6) if kills is None else kills,
        servers=servers,
        victims=_names(victims, VICTIMS, "--victims"),
        vias=_names(via, VIAS, "--via"),
    )
    with _stack(data) as settings:
        report = asyncio.run(kill_test(settings, plan, say))
    _conclude(report.document(), report.problems)


@app.command()
def scale(
    seconds: Annotated[float, typer.Option(min=10, help="How long members come and go")] = 120.0,
    seed: Seed = 1,
    data: Keep = None,
) -> None:
    """Scale from 2 to 4 and to 2 workers under load, then let 16 members of the group come and go."""
    from infra.chaos.scale import scale_test

    with _stack(data) as settings:
        report = asyncio.run(scale_test(settings, seconds=seconds, seed=seed, say=say))
    _conclude(report.document(), report.problems)


@app.command()
def rolling(
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is restarted")] = 2,
    seed: Seed = 1,
    data: Keep = None,
) -> None:
    """Restart two gateways, two workers and an executor by SIGTERM under load; no request fails, no step repeats."""
    from infra.chaos.rolling import rolling_test

    with _stack(data) as settings:
        report = asyncio.run(rolling_test(settings, seed=seed, rounds=rounds, say=say))
    _conclude(report.document(), report.problems)


@app.command()
def topics(
    only: Annotated[str, typer.Option(help="Only losses whose name holds this")] = "", seed: Seed = 1, data: Keep = None
) -> None:
    """Lose the group's offsets, topic `events` and topic `commands` while steps wait; everything ends well."""
    from infra.chaos.topics import topics_test

    with _stack(data) as settings:
        report = asyncio.run(topics_test(settings, seed=seed, say=say, only=only))
    _conclude(report.document(), report.problems)


def _names(text: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=option)
    return names


@contextlib.contextmanager
def _stack(data: Path | None) -> Iterator[Settings]:
    """Settings for a stack on a folder that goes away, or on one to keep."""
    with tempfile.TemporaryDirectory(prefix="ap-chaos-", ignore_cleanup_errors=True) as folder:
        yield load_settings(data_dir=data or Path(folder), gateway_port=0, auth_required=False)


def _conclude(document: dict[str, Any], problems: list[str]) -> None:
    print_json(document)
    if problems:
        raise typer.Exit(1)
