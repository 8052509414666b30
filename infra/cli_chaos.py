"""The command `ap chaos`: faults under load on a stack of its own, and a report of what became of every run."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import orjson
import typer

from infra.settings import load_settings

app = typer.Typer(help="Inject faults under load and verify that nothing is lost or doubled.", no_args_is_help=True)

Seed = Annotated[int, typer.Option(help="Chooses victims and times")]
Keep = Annotated[Path | None, typer.Option("--data", help="Folder to use and keep [default: a temporary one]")]


@app.command()
def kill(
    runs: Annotated[int, typer.Option(min=1, help="Runs to start, evenly over time")] = 2_000,
    seconds: Annotated[float, typer.Option(min=5, help="How long to start runs")] = 150.0,
    kills: Annotated[int | None, typer.Option(min=0, help="kill -9 in that time [default: one every 4.6 s]")] = None,
    servers: Annotated[bool, typer.Option(help="Also kill Kafka and cut Postgres, once each")] = True,
    seed: Seed = 1,
    data: Keep = None,
) -> None:
    """Kill workers, executor and gateway by kill -9, Kafka and Postgres once each, under a steady load."""
    from infra.chaos.kill import Plan, kill_test

    plan = Plan(runs, seconds, seed, int(seconds / 4.6) if kills is None else kills, servers=servers)
    with tempfile.TemporaryDirectory(prefix="ap-chaos-", ignore_cleanup_errors=True) as folder:
        settings = load_settings(data_dir=data or Path(folder), gateway_port=0, auth_required=False)
        report = asyncio.run(kill_test(settings, plan, _say))
    _say(orjson.dumps(report.document(), option=orjson.OPT_INDENT_2).decode())
    if report.problems:
        raise typer.Exit(1)


def _say(text: str) -> None:
    print(text, flush=True)
