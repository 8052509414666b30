"""Generated workflows are valid and varied; the checker agrees with their runs and notices every change."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from schemas.workflow.dsl import parse
from tests.simulation.generator import Scenario, features, generate
from tests.simulation.interpreter import (
    RUN_ID,
    Attempted,
    Began,
    CancelRequested,
    Ended,
    Failing,
    Observation,
    RunEnded,
    check,
    run,
)
from tests.simulation.loops import Graph
from tests.simulation.observations import IDLE

FEATURES = """
    answer | answer text | assigner | backoff exponential | cases | code | compensation | compensation pure
    compensation retried | compensation shared | default input | default_output | delay_seconds | end
    exit from a nested loop | exit into another loop | failed back edge | failed edge | fan-out
    head answer | head assigner | head code | head if-else | head join | head template-transform
    head that continues on error | head with a failed exit | if-else | if-else with an unlabelled edge
    join | join all_completed | join any_completed | join any_completed in a loop | join default
    join failed edge | join n_completed | join n_completed in a loop | join unreachable handled | list index
    loop depth 1 | loop depth 2 | loop depth 3 | max_iterations | merge without join | no end
    non-ASCII name | on_error continue | on_error default | one node loop | outer back edge from an inner loop
    parallel edges | retry_policy | several back edges | several ends | several exits | several sinks
    several starts | start | template JSON | template text | template-transform
    approval | human | human-input | human-takeover | on_timeout default | on_timeout escalate | on_timeout fail
    task delayed | task failed edge | task in a loop | task made up for | task retried | task with little time
    verdict edge | verdict edges only
    child delayed | child failed edge | child in a loop | child made up for | child refused | child retried
    child with inputs | child with little time | workflow
    compensation by a child | compensation by a person | error of what is compensated
"""


MERELY_ODD = {"unordered_reference", "unset_state"}


def named(listing: str) -> set[str]:
    return {name.strip() for line in listing.strip().splitlines() for name in line.split("|")}


def play(scenario: Scenario, order: int = 0, *, prompt: bool = False) -> list[Observation]:
    return run(
        scenario.dsl,
        scenario.inputs,
        scenario.effects,
        random.Random(order),
        cancel=scenario.cancel,
        cancel_after_ends=scenario.cancel_after_ends,
        prompt=prompt,
    )


def judge(scenario: Scenario, seen: Sequence[Observation], *, prompt: bool = False) -> list[str]:
    return check(scenario.dsl, scenario.inputs, RUN_ID, seen, scenario.effects, prompt=prompt)


# Generated runs.


def test_the_same_seed_gives_the_same_scenario_and_the_same_run() -> None:
    for seed in range(20):
        assert generate(seed) == generate(seed)
        assert play(generate(seed), seed) == play(generate(seed), seed)


def test_three_hundred_seeds_make_use_of_every_feature() -> None:
    found: Counter[str] = Counter()
    for seed in range(300):
        found.update(features(generate(seed).dsl))
    assert set(found) == named(FEATURES)


def test_workflows_have_3_to_40_nodes_and_end_in_every_way() -> None:
    sizes: set[int] = set()
    ends: Counter[tuple[str, str | None]] = Counter()
    seen: Counter[str] = Counter()
    for seed in range(300):
        scenario = generate(seed)
        sizes.add(len(scenario.dsl["nodes"]))
        observations = play(scenario, seed)
        last = observations[-1]
        assert isinstance(last, RunEnded)
        ends[last.status, last.error_code] += 1
        seen.update(one.status for one in observations if isinstance(one, Ended))
        seen.update(one.error_code or "" for one in observations if isinstance(one, Ended))
    assert min(sizes) == 3
    assert max(sizes) == 40
    assert {status for status, _ in ends} == {"completed", "failed", "compensated", "cancelled"}
    assert ends["completed", None] > 150
    assert ends["failed", "compensation_failed"]
    assert set(seen) >= {"completed", "failed", "skipped", "cancelled"}
    assert set(seen) >= {"max_iterations_exceeded", "join_unreachable", "evaluation_failed"}


def test_every_workflow_can_be_published_and_its_loops_are_the_compilers() -> None:
    for seed in range(200):
        scenario = generate(seed)
        program, problems = parse(scenario.dsl)
        assert {each.code for each in problems} <= MERELY_ODD, f"seed {seed}: {problems}"
        assert program is not None
        graph = Graph(scenario.dsl)
        names = [node.id for node in program.nodes]
        loops = {names[one.head]: frozenset(names[at] for at in one.body) for one in program.loops}
        assert loops == graph.bodies, f"seed {seed}"
        for edge in graph.edges:
            exits = [names[program.loops[one].head] for one in program.edges[edge.index].exits]
            assert exits == graph.exits(edge), f"seed {seed}: {edge}"
            assert (program.edges[edge.index].back_of is not None) == (edge.index in graph.back)


@pytest.mark.parametrize("seed", range(100))
def test_the_checker_agrees_with_runs_made_by_the_rules(seed: int) -> None:
    scenario = generate(seed)
    for order in range(3):
        assert judge(scenario, play(scenario, order)) == []
        prompt = play(scenario, order, prompt=True)
        assert judge(scenario, prompt) == []
        assert judge(scenario, prompt, prompt=True) == []


# The control arm: what is changed in a good run has to be noticed.

Change = Callable[[Scenario, list[Observation]], Iterator[list[Observation]]]


def replaced(seen: list[Observation], at: int, *by: Observation) -> list[Observation]:
    return [*seen[:at], *by, *seen[at + 1 :]]


def dropped(scenario: Scenario, seen: list[Observation]) -> Iterator[list[Observation]]:
    """Only of a completed run: after a failure some node runs may stay without an end."""
    last = seen[-1]
    everything = isinstance(last, RunEnded) and last.status == "completed"
    for at, one in enumerate(seen):
        compensation = isinstance(one, Ended) and "/" in one.path
        told_at_times = isinstance(one, Began) and one.on == "step"
        if told_at_times or (isinstance(one, Attempted) and _withdrawn(seen, one)):
            continue
        if everything or compensation or isinstance(one, Failing | RunEnded):
            yield replaced(seen, at)


def _withdrawn(seen: list[Observation], attempted: Attempted) -> bool:
    place = (attempted.path, attempted.iteration)
    return any(isinstance(one, Ended) and (one.path, one.iteration) == place and one.status in IDLE for one in seen)


def doubled(scenario: Scenario, seen: list[Observation]) -> Iterator[list[Observation]]:
    for at, one in enumerate(seen):
        if not isinstance(one, CancelRequested):
            yield replaced(seen, at, one, one)


def before_its_cause(scenario: Scenario, seen: list[Observation]) -> Iterator[list[Observation]]:
    graph = Graph(scenario.dsl)
    ended = [(at, one) for at, one in enumerate(seen) if isinstance(one, Ended)]
    places = {(one.path, one.iteration): at for at, one in ended if one.status in ("completed", "failed")}
    for (path, iteration), at in places.items():
        arriving = graph.forward_into(path) if path in graph.nodes and path not in graph.bodies else []
        if len(arriving) == 1 and (cause := places.get((arriving[0].source, iteration))) is not None:
            yield replaced(replaced(seen, at), cause, seen[at], seen[cause])


def wrong_output(scenario: Scenario, seen: list[Observation]) -> Iterator[list[Observation]]:
    for at, one in enumerate(seen):
        if isinstance(one, Ended) and one.status == "completed":
            yield replaced(seen, at, replace(one, output={**one.output, "other": 1}))
            yield replaced(seen, at, replace(one, output_text=f"{one.output_text} other"))
        if isinstance(one, RunEnded) and one.status == "completed":
            yield replaced(seen, at, replace(one, output={"other": 1}))
            yield replaced(seen, at, replace(one, output_text="other"))


def wrong_status(scenario: Scenario, seen: list[Observation]) -> Iterator[list[Observation]]:
    for at, one in enumerate(seen):
        match one:
            case Ended(status="completed"):
                yield replaced(seen, at, replace(one, status="failed", error_code="other"))
                yield replaced(seen, at, replace(one, status="skipped", output=None, output_text=None))
            case Ended(status="failed"):
                yield replaced(seen, at, replace(one, status="completed", output={}, error_code=None))
            case Ended(status="skipped"):
                yield replaced(seen, at, replace(one, status="completed", output={}))
                yield replaced(seen, at, replace(one, status="failed", error_code="other"))
            case RunEnded():
                other = "failed" if one.status == "completed" else "completed"
                yield replaced(seen, at, replace(one, status=other))


def wrong_identity(scenario: Scenario, seen: list[Observation]) -> Iterator[list[Observation]]:
    for at, one in enumerate(seen):
        if isinstance(one, Ended | Attempted):
            yield replaced(seen, at, replace(one, iteration=f"{one.iteration}.1"))
            yield replaced(seen, at, replace(one, iteration=f"{one.iteration}0"))
            yield replaced(seen, at, replace(one, path=f"{one.path}-other"))
        if isinstance(one, Attempted) or (isinstance(one, Ended) and one.status in ("completed", "failed")):
            yield replaced(seen, at, replace(one, attempt=one.attempt + 1))
            yield replaced(seen, at, replace(one, error_code="other"))


def ended_early(scenario: Scenario, seen: list[Observation]) -> Iterator[list[Observation]]:
    last = seen[-1]
    if isinstance(last, RunEnded) and last.status == "completed":
        for at in range(len(seen) - 1):
            yield [*seen[:at], last, *seen[at:-1]]
            yield [*seen[:at], last]


@pytest.mark.parametrize(
    "change",
    [dropped, doubled, before_its_cause, wrong_output, wrong_status, wrong_identity, ended_early],
)
def test_a_changed_run_is_noticed(change: Change) -> None:
    changes = 0
    for seed in range(40):
        scenario = generate(seed)
        seen = play(scenario, seed)
        assert judge(scenario, seen) == []
        variants = list(change(scenario, seen))
        for variant in random.Random(seed).sample(variants, min(len(variants), 12)):
            changes += 1
            assert judge(scenario, variant), f"seed {seed}: not noticed in {variant}"
    assert changes > 100
