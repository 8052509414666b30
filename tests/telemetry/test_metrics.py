"""What Prometheus reads of a worker."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from bus.lanes import INGRESS_BASE
from bus.telemetry import BatchReport, Step
from infra.telemetry.metrics import BusMetrics, LaneMetrics, Metrics, Owned, WaitingMetrics

STEP = Step("code", "t1", "run", "node-run", "compute", 1, 1, "00-trace")


@dataclass
class Standing:
    id: int
    dealt: int
    position: int
    sent: int
    stopped: str = ""


def read(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Value by name and label values, as Prometheus's own parser reads them."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_a_batch_is_counted_by_type_and_timed_once() -> None:
    metrics = Metrics()
    bus = BusMetrics(metrics)
    bus.batch(BatchReport({"runtime.create_run": 3, "ingress": 2}, rows=7, events=9, outs=2, steps=3, ended=1,
                    dead_letters=1, deciding_seconds=0.002, committing_seconds=0.02, at_once=True))  # fmt: skip
    bus.batch(BatchReport({"runtime.create_run": 1}, committing_seconds=0.2))
    seen = read(metrics)
    assert seen["agent_platform_batches_total", "at_once"] == 1
    assert seen["agent_platform_batches_total", "step_by_step"] == 1
    assert seen["agent_platform_records_total", "runtime.create_run"] == 4
    assert seen["agent_platform_records_total", "ingress"] == 2
    assert seen["agent_platform_events_total",] == 9
    assert seen["agent_platform_rows_total",] == 7
    assert seen["agent_platform_outs_total",] == 2
    assert seen["agent_platform_steps_leased_total",] == 3
    assert seen["agent_platform_aggregates_ended_total",] == 1
    assert seen["agent_platform_dead_letters_total",] == 1
    assert seen["agent_platform_commit_seconds_count",] == 2
    assert seen["agent_platform_commit_seconds_bucket", "0.025"] == 1
    assert seen["agent_platform_decide_seconds_sum",] == 0.002


def test_claims_and_fences_are_counted_in_lanes() -> None:
    metrics = Metrics()
    bus = BusMetrics(metrics)
    bus.claimed(18, 0.3)
    bus.claimed(6, 0.1)
    bus.fenced(2)
    seen = read(metrics)
    assert seen["agent_platform_lanes_claimed_total",] == 24
    assert seen["agent_platform_claim_seconds_count",] == 2
    assert seen["agent_platform_lanes_fenced_total",] == 2


def test_a_step_is_under_way_until_it_ends_well_or_badly() -> None:
    metrics = Metrics()
    bus = BusMetrics(metrics)
    first, second = bus.step(STEP), bus.step(STEP)
    assert first.traceparent == "00-trace"
    assert read(metrics)["agent_platform_steps_executing", "code"] == 2
    first.end()
    second.end("the author's own words")
    seen = read(metrics)
    assert seen["agent_platform_steps_executing", "code"] == 0
    assert seen["agent_platform_step_seconds_count", "code", "completed"] == 1
    assert seen["agent_platform_step_seconds_count", "code", "failed"] == 1
    assert "author" not in metrics.text().decode()


def test_lanes_are_shown_as_they_stand_when_asked() -> None:
    lanes = [Standing(3, 10, 20, 17), Standing(INGRESS_BASE + 1, 5, 0, 0, "a reason")]
    ends = {3: 14, INGRESS_BASE + 1: 4}
    metrics = Metrics()
    metrics.watch(LaneMetrics(lambda: [Owned(lane, ends[lane.id], held_back=2) for lane in lanes]))
    seen = read(metrics)
    assert seen["agent_platform_lanes_owned",] == 2
    assert seen["agent_platform_lane_lag", "3", "commands"] == 4
    assert seen["agent_platform_outbox_unsent", "3", "commands"] == 3
    assert seen["agent_platform_lane_held_back", "3", "commands"] == 2
    assert seen["agent_platform_lane_lag", "1", "ingress"] == 0  # The consumer has not heard of its end yet.
    assert seen["agent_platform_lane_stopped", "1", "ingress"] == 1
    del lanes[0]
    assert ("agent_platform_lane_lag", "3", "commands") not in read(metrics)


def test_what_waits_in_postgres_is_shown_with_its_age() -> None:
    metrics = Metrics()
    waiting = WaitingMetrics(metrics)
    waiting.seen({"steps": 4, "timers": 0}, {"steps": 2.5})
    seen = read(metrics)
    assert seen["agent_platform_waiting", "steps"] == 4
    assert seen["agent_platform_oldest_seconds", "steps"] == 2.5
