"""The story of each domain: commands that take it through all it knows, each accepted where it stands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module

from bus.store import Out
from infra.domains import DOMAINS
from schemas.decider import Domain
from schemas.messages import Command
from tests.domains.examples import Changed, Internal, Step
from tests.domains.platform import TENANT, Platform, message_id, record


@dataclass(frozen=True)
class Story:
    """`given`: what other domains do before. The steps use every command of the domain at least once."""

    domain: Domain
    given: tuple[Command | Internal, ...]
    steps: tuple[Step, ...]

    def command(self, number: int) -> Command | None:
        """None if the step is no command."""
        match self.steps[number]:
            case Internal(command):
                return command
            case Changed():
                return None
            case command:
                return command

    def record(self, number: int, tenant_id: str = TENANT) -> Out:
        """Step `number` as a record. Another tenant sends it under an id of its own."""
        command = self.command(number)
        assert command is not None
        foreign = tenant_id != TENANT
        id = message_id(1_000 + number if foreign else len(self.given) + number)
        return record(command, id, tenant_id, reply=not isinstance(self.steps[number], Internal))

    async def played(self, steps: int) -> Platform:
        """A platform on which so many steps have been taken."""
        platform = Platform()
        await platform.claim()
        for number, step in enumerate(self.given):
            internal = isinstance(step, Internal)
            command = step.command if isinstance(step, Internal) else step
            await platform.feed(record(command, message_id(number), reply=not internal))
        for number in range(steps):
            await self.take(platform, number)
        return platform

    async def take(self, platform: Platform, number: int) -> None:
        match self.steps[number]:
            case Changed(table, id, fields):
                rows = platform.database.tables[table]
                rows[id] = replace(rows[id], **fields)
            case _:
                await platform.feed(self.record(number))


def _story(domain: Domain) -> Story:
    examples = import_module(f"tests.domains.examples.{domain.name}")
    return Story(domain, examples.GIVEN, examples.STEPS)


STORIES = tuple(_story(domain) for domain in DOMAINS)
STEPS = [
    (story, number) for story in STORIES for number in range(len(story.steps)) if story.command(number) is not None
]


def name_of(step: tuple[Story, int]) -> str:
    story, number = step
    command = story.command(number)
    return f"{number}-{command.type if command else ''}"
