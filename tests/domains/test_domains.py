"""What holds for every domain, every command and every table, by the story of each domain."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from infra.domains import DOMAINS, EVOLVE, PROJECTIONS
from projections.fold import FoldRows
from schemas import outcomes, registry
from schemas.messages import Message
from schemas.runtime import ResumeHuman
from tests.domains.examples import Internal
from tests.domains.platform import Platform
from tests.domains.stories import STEPS, STORIES, Story, name_of

each_step = pytest.mark.parametrize("step", STEPS, ids=name_of)
each_story = pytest.mark.parametrize("story", STORIES, ids=lambda story: story.domain.name)
FOREIGN = "t2"
ASKS = {ResumeHuman}
"""What only asks whether something is so, and changes nothing."""


def name(message: type[Message]) -> str:
    return str(message.model_fields["type"].default)


# --- one entry ------------------------------------------------------------------------------------------------


def test_the_messages_on_the_wire_are_those_of_the_domains() -> None:
    """`schemas` may not look up to the domains, so it has a list of its own."""
    commands = {name(command): command for domain in DOMAINS for command in domain.decide}
    commands |= registry.by_name(outcomes.COMMANDS)
    events = {name(event): event for domain in DOMAINS for event in domain.events}
    assert (commands, events) == (dict(registry.COMMANDS), dict(registry.EVENTS))


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_a_domain_is_called_like_its_messages_and_its_deciders_are_on_their_own(domain: Any) -> None:
    assert {name(message).partition(".")[0] for message in (*domain.decide, *domain.events)} == {domain.name}
    assert domain.tables[0].row is domain.head
    (contract,) = (each for each in CONTRACTS if each["type"] == "independence")
    assert f"handlers.{domain.name}" in contract["modules"]


CONTRACTS = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]


# --- stories --------------------------------------------------------------------------------------------------


@each_story
async def test_a_story_tells_all_that_a_domain_can_do(story: Story) -> None:
    """Each step is accepted and changes something, so that what the other tests say of it is not said of nothing."""
    commands = [story.command(number) for number in range(len(story.steps))]
    assert {type(command) for command in commands if command} == set(story.domain.decide)
    platform = await story.played(0)
    for number in range(len(story.steps)):
        before = platform.events
        await story.take(platform, number)
        command = story.command(number)
        assert platform.events > before or command is None or type(command) in ASKS, f"step {number} does nothing"
    assert {outcome.status for outcome in platform.database.outcomes.values()} == {"succeeded"}
    assert not platform.database.letters


def everything(platform: Platform) -> list[Any]:
    """What is known, and what was sent."""
    database = platform.database
    return [platform.dump(), dict(database.timers), list(database.made)]


@each_step
async def test_a_command_handled_twice_is_handled_once(step: tuple[Story, int]) -> None:
    story, number = step
    platform = await story.played(number + 1)
    once = everything(platform)
    await platform.feed(story.record(number))
    assert everything(platform) == once
    await platform.claim()  # By another owner, with nothing in memory.
    await platform.feed(story.record(number))
    assert everything(platform) == once


@each_step
async def test_a_command_that_comes_again_at_the_end_changes_nothing(step: tuple[Story, int]) -> None:
    story, number = step
    platform = await story.played(len(story.steps))
    ended = everything(platform)
    await platform.feed(story.record(number))
    assert everything(platform) == ended


@each_step
async def test_a_foreign_tenant_is_refused_and_nothing_changes(step: tuple[Story, int]) -> None:
    """Where the aggregate's id is made of the tenant, a foreign command is for another aggregate: it gets that."""
    story, number = step
    command = story.command(number)
    assert command is not None
    platform = await story.played(number + command.creates)
    mine, foreign = story.record(number), story.record(number, FOREIGN)
    rows, outcomes, events = platform.rows(), dict(platform.database.outcomes), platform.events
    await platform.feed(foreign)
    if foreign.key == mine.key:
        told = [each for id, each in platform.database.outcomes.items() if id not in outcomes]
        assert len(told) == (not isinstance(story.steps[number], Internal))
        for outcome in told:
            problem = orjson.loads(outcome.body)
            assert outcome.status == "rejected", outcome
            assert problem["status"] in (404, 409) or problem["code"] == "unknown_reference"
        assert (platform.rows(), platform.events) == (rows, events)
    for table, known in rows.items():
        assert {id: row for id, row in platform.rows()[table].items() if row.tenant_id != FOREIGN} == known


@each_story
async def test_the_log_folds_to_the_rows_that_are_stored(story: Story) -> None:
    platform = await story.played(len(story.steps))
    folds: dict[str, FoldRows] = defaultdict(FoldRows)
    for (aggregate_id, _), logged in sorted(platform.database.events.items()):
        stored = logged.recorded._replace(event=registry.decode_event(logged.recorded.event.type, logged.body))
        folds[aggregate_id].apply(EVOLVE[stored.event.type], stored)
    for spec in PROJECTIONS:
        found = {id: row for fold in folds.values() for (kind, id), row in fold.rows.items() if kind is spec.row}
        lost = dict.fromkeys(spec.operational)
        assert {id: replace(row, **lost) for id, row in found.items()} == {
            id: replace(row, **lost) for id, row in platform.rows()[spec.name].items()
        }
    for spec in story.domain.tables:
        assert platform.rows()[spec.name], f"the story leaves no row in {spec.name}"
