"""How commands meet a person: settings of a data folder, errors as one line, JSON."""

import sys
from collections.abc import Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TextIO, TypeVar

import orjson
import typer

from infra.escaping import encodable, escaped, escaped_json, traceback_lines
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


def say(*lines: str) -> None:
    """Print each on one line of standard output, whatever strangers wrote into it."""
    _print(sys.stdout, lines)


def remark(*lines: str) -> None:
    """The same beside the output, on standard error."""
    _print(sys.stderr, lines)


def complain(text: str) -> None:
    remark(f"ap: {text}")


def print_json(document: Any) -> None:
    say(*json_lines(document))


def json_lines(document: Any) -> list[str]:
    """A document as indented JSON."""
    return escaped_json(encodable(document), option=orjson.OPT_INDENT_2).split("\n")


def somebody_watches() -> bool:
    """Whether a person sees what is drawn on standard error."""
    return sys.stderr.isatty()


def output_is_watched() -> bool:
    """Whether a person sees standard output."""
    return sys.stdout.isatty()


def binary_output() -> BinaryIO:
    """Standard output for documents whose text is escaped already, as lines of `cloud_events.line` are."""
    return sys.stdout.buffer


def report_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's hook for errors that nobody caught: their text is strangers' too."""
    remark(*traceback_lines(error))


def _print(file: TextIO, lines: Iterable[str]) -> None:
    print("\n".join(map(escaped, lines)), file=file, flush=True)


def attach(settings: Settings) -> Settings:
    """Fill in what is not set from the stack that runs on the data folder. Raises SettingsError."""
    settings = fill_in(settings)
    settings.require_addresses()
    return settings


def fill_in(settings: Settings) -> Settings:
    """The settings with what is not set taken from the stack that runs on the data folder, if one does."""
    from infra.local.embedded.state import read_state

    state = read_state(settings.data_dir)
    if state is None or not state.is_running:
        return settings
    found: dict[str, Any] = {
        "database_url": state.database_url,
        "kafka_bootstrap": state.kafka_bootstrap,
    }
    missing = {name: value for name, value in found.items() if getattr(settings, name) is None}
    return settings.model_copy(update=missing)
