"""The log of a process: one line for each record on standard error, as text or JSON, whatever strangers put into it."""

from __future__ import annotations

import logging
import os
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from infra.escaping import escaped, escaped_json, traceback_lines
from infra.settings import Settings

OURS = "agent_platform"
log = logging.getLogger(OURS)

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class TextFormatter(logging.Formatter):
    """`time level process logger message`; a traceback follows, its lines indented, so none of them looks like one."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_time(record)} {record.levelname:<8} {self._process} {record.name} {record.getMessage()}"
        return "\n".join([escaped(head), *(f"    {line}" for line in _details(record))])


class JsonFormatter(logging.Formatter):
    """One object a line: `time`, `level`, `process`, `logger`, `message`, and `exception` as a list of lines."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage().encode("utf-8", "backslashreplace").decode(),
        }
        if details := _details(record):
            document["exception"] = details
        return escaped_json(document)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _details(record: logging.LogRecord) -> list[str]:
    lines = traceback_lines(record.exc_info[1]) if record.exc_info and record.exc_info[1] else []
    return lines + [escaped(line) for line in (record.stack_info or "").split("\n") if line]


def start(settings: Settings, role: str) -> None:
    """Log as the settings say, from now on, all of this process: `role`-`process id` names it in each line."""
    start_at(settings.log_level, settings.log_format, f"{role}-{os.getpid()}")


def start_at(
    level: Literal["debug", "info", "warning", "error"], format: Literal["text", "json"], process: str
) -> None:
    """The same without settings. Libraries say little: at `debug` what they inform of, else what they warn of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if format == "json" else TextFormatter(process))
    logging.basicConfig(handlers=[handler], force=True)
    number = _LEVELS[level]
    logging.getLogger().setLevel(logging.INFO if number == logging.DEBUG else max(number, logging.WARNING))
    # It warns of every retry; what that means for us, we say.
    logging.getLogger("aiokafka").setLevel(logging.INFO if number == logging.DEBUG else logging.ERROR)
    log.setLevel(number)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda it: _uncaught(it.exc_type, it.exc_value, it.exc_traceback)
    sys.unraisablehook = lambda it: log.error("an error nobody could be told", exc_info=it.exc_value or True)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """What would end a process with a traceback of raw text."""
    if error is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    log.critical("an error that nobody caught", exc_info=(kind, error, trace))
