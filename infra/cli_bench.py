"""The command `ap bench`: this system and other durable engines under the same loads on the same servers."""

import tempfile
from pathlib import Path
from typing import Annotated

import orjson
import typer

from infra.settings import load_settings

WORKLOADS = ("chain-10", "pure-10")


def bench(
    workloads: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(WORKLOADS)} [default: all]")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs of one load, at most")] = 5_000,
    in_flight: Annotated[list[int] | None, typer.Option(min=1, help="Runs in flight [default: 100 and 8]")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often to measure everything")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="For how long a load starts runs, at most")] = 10.0,
    json: Annotated[Path | None, typer.Option(help="Write everything measured to this file")] = None,
) -> None:
    """Measure throughput, latency and CPU cost, side by side with other durable engines."""
    import logging

    import uvloop

    from infra.bench import bench as benchmark
    from infra.bench import report
    from infra.bench import workloads as known
    from infra.bench.platform import BenchFailed

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # It reports every retry, also of its first second.
    options = benchmark.Options(runs=runs, in_flight=tuple(in_flight or (100, 8)), repeats=repeats, seconds=seconds)
    chosen = {"chain-10": known.chain_10, "pure-10": known.pure_10}
    unknown = [name for name in workloads or () if name not in chosen]
    if unknown:
        raise typer.BadParameter(f"there is no workload {unknown[0]!r}: {', '.join(WORKLOADS)}")
    with tempfile.TemporaryDirectory(prefix="ap-bench-", ignore_cleanup_errors=True) as folder:
        settings = load_settings(data_dir=Path(folder), gateway_port=0, auth_required=False)
        try:
            found = uvloop.run(
                benchmark.run([chosen[name] for name in workloads or chosen], options, settings, Path(folder), _say)
            )
        except BenchFailed as error:
            typer.echo(f"ap: the benchmark failed: {error}", err=True)
            raise typer.Exit(1) from None
    for table in report.tables(found.results):
        _say(f"\n{table}")
    for ratio in report.ratios(found.results):
        _say(ratio)
    if json is not None:
        json.write_bytes(orjson.dumps(found.document(), option=orjson.OPT_INDENT_2))


def _say(text: str) -> None:
    print(text, flush=True)
