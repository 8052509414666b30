"""How commands meet a person: settings of a data folder, errors as one line, JSON."""

import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TextIO, TypeVar

import orjson
import typer

from infra.settings import Settings, load_settings

T = TypeVar("T")


def attached_settings(data: Path | None) -> Settings:
    """The settings, with the addresses of what runs in the data folder."""
    return attach(load_settings(data_dir=data))


def run_or_exit(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on uvloop; what a person can mend is one line and exit code 2."""
    import asyncpg
    import uvloop
    from aiokafka.errors import KafkaError

    from bus.producer import BusUnavailable
    from bus.replay import ReadStalled, TopicMissing
    from bus.store import SendFailed, Unavailable

    try:
        return uvloop.run(work)
    except (KafkaError, BusUnavailable, SendFailed, TopicMissing, ReadStalled) as error:
        complain(f"Kafka: {error}")
    except (asyncpg.PostgresError, asyncpg.InterfaceError, Unavailable) as error:
        complain(f"Postgres: {error}")
    raise typer.Exit(2)


def print_json(document: Any, file: TextIO | None = None) -> None:
    print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode(), file=file)


def complain(text: str) -> None:
    print(f"ap: {text}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    print(text, flush=True)


def attach(settings: Settings) -> Settings:
    """Fill in what is not set from the stack that runs on the data folder. Raises SettingsError."""
    settings = fill_in(settings)
    settings.require_addresses()
    return settings


def fill_in(settings: Settings) -> Settings:
    """The settings with what is not set taken from the stack that runs on the data folder, if one does."""
    from pydantic import SecretStr

    from infra.local.embedded.state import local_credential_keys, read_state

    state = read_state(settings.data_dir)
    if state is None or not state.is_running:
        return settings
    found: dict[str, Any] = {
        "database_url": state.database_url,
        "kafka_bootstrap": state.kafka_bootstrap,
        "credential_keys": SecretStr(local_credential_keys(settings.data_dir)),
    }
    missing = {name: value for name, value in found.items() if getattr(settings, name) is None}
    return settings.model_copy(update=missing)
