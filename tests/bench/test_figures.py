"""What the benchmark computes from what it saw: percentiles, spreads, CPU time, tables."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

import orjson
import pytest

from infra.bench import profiler, report
from infra.bench.backlog import edges
from infra.bench.bench import Options, Report
from infra.bench.load import Load, closed_loop, percentile
from infra.bench.measure import OURS, Result, Spread
from infra.bench.platform import BenchFailed
from infra.bench.processes import cpu_seconds, read_cpu
from infra.bench.runner import installed
from infra.bench.targets import Finding, findings

BURN_SECONDS = 0.3
BURN = f"import time\nwhile time.process_time() < {BURN_SECONDS}: pass"
PARENT_OF_THE_DEAD = (
    f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}]); print('done', flush=True); input()"
)
PARENT_OF_THE_LIVING = (
    "import subprocess, sys\n"
    f"child = subprocess.Popen([sys.executable, '-c', {BURN + chr(10) + 'print(1, flush=True); input()'!r}],"
    " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
    "child.stdout.readline(); print('done', flush=True); input(); child.kill()"
)


class TestPercentile:
    @pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
    def test_is_the_nearest_rank(self, share: float, expected: float) -> None:
        assert percentile(list(range(100, 0, -1)), share) == expected

    def test_of_one_value_is_that_value(self) -> None:
        assert percentile([7.0], 0.99) == 7.0

    def test_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            percentile([], 0.5)


def test_the_median_of_an_even_number_of_values_is_between_the_middle_ones() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0]) == Spread(2.5, 1.0, 4.0)


class TestClosedLoop:
    async def test_keeps_to_the_runs_in_flight_and_in_all(self) -> None:
        running, most = 0, 0

        async def one() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

        measured = await closed_loop(one, Load(in_flight=3, runs=20, seconds=60))
        assert (measured.runs, most) == (20, 3)

    async def test_fails_when_one_run_fails(self) -> None:
        async def one() -> None:
            raise RuntimeError("a run failed")

        with pytest.raises(RuntimeError, match="a run failed"):
            await closed_loop(one, Load(in_flight=2, runs=4, seconds=60))


@contextlib.contextmanager
def child_that_says_done(code: str) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        yield child.pid
        child.kill()


class TestCpuTime:
    def test_counts_a_descendant_that_has_ended(self) -> None:
        with child_that_says_done(PARENT_OF_THE_DEAD) as pid:
            assert cpu_seconds(pid) >= BURN_SECONDS - 0.02

    def test_counts_a_descendant_that_lives(self) -> None:
        with child_that_says_done(PARENT_OF_THE_LIVING) as pid:
            assert cpu_seconds(pid) >= BURN_SECONDS - 0.02

    def test_of_others_leaves_out_what_is_accounted_for(self) -> None:
        with child_that_says_done(PARENT_OF_THE_DEAD) as pid:
            before = read_cpu({"worker": [pid]})
            spent = read_cpu({"worker": [pid]}).since(before)
        assert set(spent.kinds) == {"worker"}
        assert spent.kinds["worker"] < BURN_SECONDS / 2

    def test_a_kind_without_processes_is_left_out(self) -> None:
        assert read_cpu({"worker": []}).kinds == {}


RESULTS = [
    Result("chain-10", "100 in flight", "dbos", {"steps/s": 400.0, "p50 ms": 200.0, "worker µs/step": 2_000.0}),
    Result("chain-10", "100 in flight", "dbos", {"steps/s": 800.0, "p50 ms": 400.0, "worker µs/step": 2_000.0}, 1),
    Result("chain-10", "100 in flight", OURS, {"steps/s": 5_000.0, "p50 ms": 20.0, "worker µs/step": 100.0}),
    Result("chain-10", "100 in flight", OURS, {"steps/s": 6_000.0, "p50 ms": 80.0, "worker µs/step": 120.0}, 1),
    Result("chain-10", "alone", OURS, {"p50 ms": 18.0}),
    Result("chain-10", "alone", "dbos", {"p50 ms": 36.0}),
    Result("reads", "32 clients", OURS, {"reads/s": 1_500.0}),
]
MACHINE = {
    "at": "2026-01-01T00:00:00+00:00",
    "cpu": "a <fast> one",
    "cores": 2,
    "memory_gib": 8.0,
    "system": "Linux",
    "python": "3.11",
    "postgres": "18.6",
    "kafka": "4.4.0",
    "load_average": 0.1,
}
REPORT = Report(MACHINE, Options(against=["dbos"]), {"dbos": "3.4.0"}, RESULTS)


class TestReport:
    def test_shows_medians_with_least_and_greatest(self) -> None:
        assert "5 500 (5 000-6 000)" in report.text(REPORT)

    def test_has_a_table_for_each_workload_with_all_systems(self) -> None:
        first, second = report.tables(RESULTS)
        assert first.startswith("chain-10\n")
        assert [row.split("|")[2].strip() for row in first.splitlines()[3:]] == ["dbos", OURS] * 2
        assert second.startswith("reads\n")

    def test_compares_with_each_other_system_within_a_repeat(self) -> None:
        assert list(report.ratios(RESULTS)) == [
            "chain-10, 100 in flight, steps/s: 10.00 (7.50-12.50) x dbos",
            "chain-10, 100 in flight, p50 ms: 0.15 (0.10-0.20) x dbos",
            "chain-10, alone, p50 ms: 0.50 (0.50-0.50) x dbos",
        ]

    def test_says_what_each_system_records(self) -> None:
        assert "dbos 3.4.0 (one process on the same Postgres): a status row" in report.text(REPORT)

    def test_keeps_every_repeat_in_the_document(self) -> None:
        assert len(REPORT.document()["results"]) == len(RESULTS)

    def test_is_read_again_from_its_document(self) -> None:
        document = orjson.loads(orjson.dumps(REPORT.document()))
        assert Report.of(document).document() == document

    def test_of_an_earlier_time_shares_no_repeat(self) -> None:
        both = REPORT.with_earlier(REPORT)
        assert {each.repeat for each in both.results} == {0, 1, 2, 3}
        assert len(both.results) == 2 * len(RESULTS)
        assert "measured at 2026-01-01" in report.text(both)


class TestTargets:
    def found(self, results: list[Result], number: str, what: str) -> Finding:
        (found,) = [
            each
            for each in findings(results, {result.workload for result in results})
            if each.target.number == number and what in each.target.what
        ]
        return found

    def test_a_ratio_is_taken_within_each_repeat(self) -> None:
        rate = self.found(RESULTS, "1", "DBOS")
        assert rate.values == [12.5, 7.5]
        assert (rate.floor_met, rate.goal_met) == (True, False)

    def test_less_is_better_for_a_latency(self) -> None:
        assert self.found(RESULTS, "2", "DBOS").floor_met is True
        slower = [*RESULTS, Result("chain-10", "alone", OURS, {"p50 ms": 37.0}, 0)]
        assert self.found(slower, "2", "DBOS").floor_met is False

    def test_what_was_not_measured_is_not_met(self) -> None:
        missed = self.found(RESULTS, "1", "Restate")
        assert (missed.values, missed.floor_met, missed.goal_met) == ([], False, False)
        assert "not measured" in report.targets([missed])

    def test_the_growth_of_a_step_is_that_of_worker_and_postgres(self) -> None:
        def cost(load: str, worker: float, postgres: float) -> Result:
            values = {"worker µs/step": worker, "postgres µs/step": postgres, "kafka µs/step": 1_000.0}
            return Result("length", load, OURS, values)

        results = [cost("10 nodes a run", 100.0, 50.0), cost("1000 nodes a run", 140.0, 70.0)]
        assert self.found(results, "7", "1 000 nodes").values == [1.4]

    def test_only_those_of_the_workloads_are_judged(self) -> None:
        assert {each.target.number for each in findings(RESULTS, {"reads"})} == {"5"}

    def test_a_goal_alone_is_no_floor(self) -> None:
        assert self.found(RESULTS, "2", "fastest").floor_met is None


class TestBacklog:
    def test_rates_and_memory_are_those_of_the_beginning_and_the_end(self) -> None:
        series = {
            "s": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "worker MiB": [10.0, 100.0, 110.0, 110.0, 120.0, 150.0, 140.0],
            "node runs": [0.0, 0.0, 20.0, 50.0, 80.0, 90.0, 100.0],
        }
        assert edges(series) == {
            "steps/s": 20.0,
            "first fifth steps/s": 20.0,
            "last fifth steps/s": 10.0,
            "after a fifth MiB": 110.0,
            "most MiB": 150.0,
        }


def test_what_a_peer_needs_is_asked_for_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(BenchFailed, match="restate needs"):
        installed(["restate"])


class TestProfile:
    def test_counts_a_function_with_what_it_called_once_a_sample(self) -> None:
        folded = "run (a.py:1);work (b.py:5) 3\nrun (a.py:2);work (b.py:9);run (a.py:3) 1\n"
        shown = [line.split(maxsplit=1) for line in profiler.hot_functions(folded)]
        assert shown == [
            ["4", "samples; own code:"],
            ["75.0%", "work (b.py)"],
            ["25.0%", "run (a.py)"],
            ["own", "code, by line:"],
            ["75.0%", "work (b.py:5)"],
            ["25.0%", "run (a.py:3)"],
            ["with", "what it called:"],
            ["100.0%", "run (a.py)"],
            ["100.0%", "work (b.py)"],
        ]

    def test_leaves_out_threads_that_wait_for_work(self) -> None:
        folded = "run (a.py:1) 1\nrun (threading.py:9);_worker (concurrent/futures/thread.py:81) 99\n"
        assert "  100.0%  run (a.py)" in list(profiler.hot_functions(folded))

    def test_says_so_when_a_process_was_never_seen(self) -> None:
        assert list(profiler.hot_functions("")) == ["  no samples"]

    def test_shows_what_a_statement_costs_a_call_and_what_it_writes(self) -> None:
        query = "WITH a AS (SELECT 1), b AS (INSERT INTO event SELECT 2) UPDATE lane SET epoch = 1 WHERE x"
        _, line = profiler.dearest([profiler.Statement(query, 4, 10.0, 8, 40, 400.0)])
        assert line.split()[:6] == ["10.0", "4", "2.500", "2.0", "10.0", "100"]
        assert line.endswith("writes event, lane")
