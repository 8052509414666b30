"""The command `ap bench`: this system and other durable engines under the same loads on the same servers."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from infra.bench.catalogue import PEERS, WORKLOADS
from infra.cli.terminal import complain, say
from infra.escaping import escaped
from infra.settings import load_settings

if TYPE_CHECKING:
    from infra.bench.bench import Report


def bench(
    workloads: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(WORKLOADS)}; all if none is named")] = None,
    against: Annotated[str, typer.Option(help=f"Other systems, by commas: {', '.join(PEERS)}; or all")] = "",
    runs: Annotated[int, typer.Option(min=1, help="Runs of one load, at most")] = 5_000,
    in_flight: Annotated[str, typer.Option(help="Runs in flight, by commas")] = "100,8",
    repeats: Annotated[int, typer.Option(min=1, help="How often to measure everything")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="For how long a load starts runs, at most")] = 10.0,
    small: Annotated[bool, typer.Option("--small", help="A quick look: little stored, few runs, one repeat")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time goes; slows it down")] = False,
    json: Annotated[Path | None, typer.Option(help="Write everything measured to this file")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder to use and keep [default: a temporary one]")] = None,
    floors: Annotated[bool, typer.Option("--floors", help="Judge by the targets; fails if a floor is missed")] = False,
    earlier: Annotated[
        list[Path] | None, typer.Option(help="Add what --json has kept; measures the named only")
    ] = None,
) -> None:
    """Measure throughput, latency and CPU cost, side by side with other durable engines."""
    import uvloop

    from infra.bench import report, runner
    from infra.bench.bench import Options
    from infra.bench.platform import BenchFailed
    from infra.bench.targets import findings

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # It reports every retry, also of its first second.
    chosen = _known(workloads or ([] if earlier else list(WORKLOADS)), WORKLOADS, "WORKLOADS")
    options = Options(
        against=_peers(against or ("all" if floors and "chain-10" in chosen else "")),
        runs=runs,
        in_flight=_numbers(in_flight),
        repeats=repeats,
        seconds=seconds,
        profile=profile,
    )
    before = [_report(file) for file in earlier or ()]
    if json is not None and not json.absolute().parent.is_dir():
        raise typer.BadParameter(f"{json.absolute().parent} is no folder", param_hint="--json")
    with tempfile.TemporaryDirectory(prefix="ap-bench-", ignore_cleanup_errors=True) as temporary:
        settings = load_settings(data_dir=data or Path(temporary), gateway_port=0, auth_required=False)
        try:
            found = uvloop.run(runner.run(chosen, options.small() if small else options, settings, say))
        except BenchFailed as error:
            complain(f"the benchmark failed: {error}")
            raise typer.Exit(1) from None
    for each in before:
        found = found.with_earlier(each)
    judged = list(findings(found.results, {*chosen, *(each.workload for each in found.results)})) if floors else []
    parts = [report.text(found), *([report.targets(judged)] if judged else [])]
    say(*"\n\n".join(parts).split("\n"))
    if json is not None:
        document = {**found.document(), "targets": [finding.document() for finding in judged]}
        json.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    if any(finding.floor_met is False for finding in judged):
        raise typer.Exit(1)


def _report(file: Path) -> Report:
    from infra.bench.bench import Report

    try:
        return Report.of(orjson.loads(file.read_bytes()))
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise typer.BadParameter(escaped(f"{file} is no report: {error}"), param_hint="--earlier") from None


def _peers(named: str) -> list[str]:
    """Those named must be there; of all, those that are there."""
    from infra.bench import runner

    if named != "all":
        return _known(_split(named), PEERS, "--against")
    lacking = {name: runner.missing(name) for name in PEERS}
    for name, what in lacking.items():
        if what is not None:
            say(f"without {name}: {what}")
    return [name for name, what in lacking.items() if what is None]


def _split(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _known(names: list[str], known: Mapping[str, object], parameter: str) -> list[str]:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"there is no {name!r}: {', '.join(known)}", param_hint=parameter)
    return names


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in _split(text))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter("must be whole numbers from 1 on, by commas", param_hint="--in-flight")
    return numbers
