"""The command `ap`; each command imports what it needs when it runs, so that starting one is quick."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli import bench, chaos, history, operate, scale
from infra.cli.terminal import attach, complain, fill_in, output_is_watched, report_uncaught, say, somebody_watches
from infra.settings import Settings, SettingsError, load_settings, unused_names

if TYPE_CHECKING:
    from infra.local.embedded.jars import Progress

app = typer.Typer(
    name="ap",
    help="Durable workflows and agents on Kafka and Postgres.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(chaos.app, name="chaos")
app.command()(bench.bench)

Data = Annotated[Path | None, typer.Option("--data", help="Folder of the embedded services [default: .ap]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]


@app.command()
def up(
    workers: Annotated[int | None, typer.Option(min=0, help="Worker processes [default: as last time, or 1]")] = None,
    executors: Annotated[
        int | None, typer.Option(min=0, help="Executor processes [default: as last time, or 1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the gateway [default: as last time, or 8000]")
    ] = None,
    data: Data = None,
) -> None:
    """Start Postgres, Kafka, workers, executors and the gateway; Ctrl-C stops all."""
    from infra.local.supervisor import Supervisor

    settings = load_settings(data_dir=data, gateway_port=port)
    _report_unused()

    async def run() -> None:
        with _FetchProgress() as progress:
            await Supervisor(settings, workers=workers, executors=executors, say=say, progress=progress).run()

    asyncio.run(run())


@app.command()
def demo(
    tickets: Annotated[int, typer.Option(min=1, max=100_000, help="Tickets sent by Kafka")] = 1_000,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes")] = 2,
) -> None:
    """Start everything in a fresh folder, run the guided example, stop."""
    import tempfile

    from infra.local.console import SafeConsole
    from infra.local.demo import DemoFailed, run_demo
    from infra.local.supervisor import Supervisor

    console = SafeConsole(width=None if output_is_watched() else 120)

    async def run(folder: str) -> None:
        settings = load_settings(data_dir=Path(folder), gateway_port=0, auth_required=False)
        with _FetchProgress() as progress:
            stack = Supervisor(settings, workers=workers, executors=0, say=say, progress=progress)
            await stack.run(once_ready=lambda _: run_demo(stack, tickets, console))

    with tempfile.TemporaryDirectory(prefix="ap-demo-", ignore_cleanup_errors=True) as folder:
        try:
            asyncio.run(run(folder))
        except DemoFailed as error:
            complain(f"the example failed: {error}")
            raise typer.Exit(1) from None


@app.command()
def down(data: Data = None, quiet: Annotated[bool, typer.Option("--quiet")] = False) -> None:
    """Stop what `ap up` started on a data folder."""
    from infra.cli.local import stop

    message = stop(load_settings(data_dir=data).data_dir)
    if not quiet:
        say(message)


@app.command()
def status(
    data: Data = None,
    as_json: AsJson = False,
    lanes: Annotated[bool, typer.Option("--lanes", help="Show every lane, not only those that wait")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Draw it anew until Ctrl-C, with rates and ages")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks of --watch")] = 2.0,
) -> None:
    """Show processes, lanes, and what waits. Exit code 1 if nothing runs or something stands still."""
    from infra.cli.local import show_status, watch_status

    settings = fill_in(load_settings(data_dir=data))
    if watch:
        watch_status(settings, every, every_lane=lanes)
        return
    if not show_status(settings, as_json=as_json, every_lane=lanes):
        raise typer.Exit(1)


@app.command()
def config(as_json: AsJson = False) -> None:
    """Print every setting with its value (secrets masked), default and source."""
    from infra.cli.local import show_config

    show_config(load_settings(), as_json=as_json)
    _report_unused()


@app.command()
def gateway(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on [default: 8000]")] = None,
    data: Data = None,
) -> None:
    """Run one gateway."""
    from infra.roles.gateway import run_gateway

    run_role("gateway", run_gateway, attach(load_settings(data_dir=data, gateway_port=port)))


@app.command()
def worker(data: Data = None) -> None:
    """Run one worker: it owns lanes, decides, and takes steps when it has room."""
    from infra.roles.worker import run_worker

    run_role("worker", run_worker, attach(load_settings(data_dir=data)))


@app.command()
def executor(data: Data = None) -> None:
    """Run one executor: it takes steps only."""
    from infra.roles.executor import run_executor

    run_role("executor", run_executor, attach(load_settings(data_dir=data)))


@app.command()
def migrate(data: Data = None) -> None:
    """Bring the database to the newest schema and make the topics."""
    import uvloop

    from infra.roles import prepare

    settings = attach(load_settings(data_dir=data))
    uvloop.run(prepare.migrate(settings))
    uvloop.run(prepare.create_topics(settings))


operate.register(app)
history.register(app)
scale.register(app)


def run_role(name: str, role: Callable[[Settings], Coroutine[Any, Any, None]], settings: Settings) -> None:
    """Run a role to its end, on uvloop, its log as the settings say."""
    import uvloop

    from infra.telemetry import logs

    logs.start(settings, name)
    try:
        uvloop.run(role(settings))
    except Exception as error:
        problems = problems_of(error)
        if not problems:
            raise
        for problem in problems:
            logs.log.critical("%s", problem)
        raise typer.Exit(2) from None


class _FetchProgress:
    """A progress bar while jars are fetched for the first time; a line where nobody watches."""

    def __enter__(self) -> "Progress":
        self._bar: Any = None
        return self._advance

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _advance(self, done: int, total: int) -> None:
        if done == 0:
            if not somebody_watches():
                complain(f"fetching Apache Kafka ({total} files, once) ...")
                return
            from rich.progress import Progress as Bar

            from infra.local.console import SafeConsole

            self._bar = Bar(console=SafeConsole(stderr=True), transient=True)
            self._task = self._bar.add_task("Fetching Apache Kafka (once)", total=total)
            self._bar.start()
        elif self._bar is not None:
            self._bar.update(self._task, completed=done)
            if done == total:
                self._bar.stop()


def _report_unused() -> None:
    for name in unused_names():
        complain(f"{name} is set and has no use here")


def problems_of(error: Exception) -> list[str]:
    """What a person can mend, a line each; none if the error is a fault of ours."""
    from infra.local.embedded.failures import StackError

    match error:
        case SettingsError():
            return error.problems
        case StackError():
            return [str(error)]
        case OSError() if error.filename is not None or error.errno is not None:
            return [f"{error.strerror}{f': {error.filename}' if error.filename else ''}"]
    return []


def main() -> None:
    """Run a command; what a person can mend is one line and exit code 2."""
    from infra.telemetry import logs

    logs.start_at("warning", "text", "ap")  # A role begins its own, by its settings.
    sys.excepthook = report_uncaught
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        problems = problems_of(error)
        if not problems:
            raise
        for problem in problems:
            complain(problem)
        sys.exit(2)


if __name__ == "__main__":
    main()
