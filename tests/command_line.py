"""`ap` against the platform of a test."""

from __future__ import annotations

import asyncio

from typer.testing import CliRunner

from infra.cli.app import app
from infra.settings import Settings, setting_name

SETTINGS = (
    "database_url", "kafka_bootstrap", "topic_prefix", "commands_partitions", "ingress_partitions",
    "events_partitions", "steps_partitions", "replies_partitions", "live_partitions", "dead_letters_partitions",
)  # fmt: skip


async def ap(settings: Settings, *arguments: str, given: bytes | None = None) -> tuple[int, str]:
    """Run a command: its exit code and its output. `given`: what it reads from standard input."""
    environment = {setting_name(name): str(getattr(settings, name)) for name in SETTINGS}
    runner = CliRunner()
    result = await asyncio.to_thread(runner.invoke, app, list(arguments), input=given, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output
