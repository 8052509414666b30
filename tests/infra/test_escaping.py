"""What strangers wrote does nothing where it is printed: terminals, JSON, drawings, logs, tracebacks."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Group
from rich.table import Table

from infra.chaos.control import ControlReport
from infra.cli import operate, terminal
from infra.escaping import encodable, escaped, escaped_json, traceback_lines
from infra.history.replay import Printed
from infra.history.replay.cloud_events import cloud_event, line
from infra.local.console import SafeConsole
from infra.local.watch import body
from infra.operate.lanes import Standing
from infra.operate.status import lines
from infra.settings import Settings
from infra.telemetry.logs import JsonFormatter, TextFormatter
from tests.hostile_text import CORPUS, HARMLESS, active
from tests.infra.test_watch import LANE, SEEN
from tests.patience import patient

EACH = pytest.mark.parametrize("text", CORPUS.values(), ids=CORPUS)


@EACH
def test_nothing_active_is_left(text: str) -> None:
    assert active(escaped(text)) == []
    assert escaped(escaped(text)) == escaped(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_does_nothing_stays(text: str) -> None:
    assert escaped(text) == text


def test_every_character_is_told_apart() -> None:
    every = [chr(number) for number in range(0x110000)]
    left = "".join(character for character in every if escaped(character) == character)
    assert active(left) == []
    assert all(character.isascii() is False or not character.isprintable() for character in set(every) - set(left))


@EACH
def test_json_keeps_its_value(text: str) -> None:
    document = encodable({text: [text, {"x": text}]})
    for option in (0, orjson.OPT_INDENT_2):
        printed = escaped_json(document, option=option)
        assert active(printed, lines=True) == []
        assert json.loads(printed) == document


@EACH
def test_a_terminal_gets_one_line_for_each(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(text, "ours")
    terminal.complain(text)
    out, err = capsys.readouterr()
    assert active(out + err, lines=True) == []
    assert (out.count("\n"), err.count("\n")) == (2, 1)


@EACH
def test_json_on_a_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_json({"text": text, "more": [text]})
    out = capsys.readouterr().out
    assert active(out, lines=True) == []
    assert list(json.loads(out)) == ["text", "more"]


# --- commands ------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("as_json", [False, True])
def test_lanes(text: str, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    lane = Standing(1, "commands", 1, text, 1, 2, 3, 4, 5, stopped=text, begin=0, end=9, hidden=0)
    operate._print_lanes([lane], as_json)
    out = capsys.readouterr().out
    assert active(out, lines=True) == []
    assert as_json or out.count("\n") == 1


@EACH
def test_status(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    seen = replace(SEEN, lanes=(replace(LANE, owner=text, stopped=text),), steps_ready={text: 1})
    shown = lines(seen, [text], every_lane=True)
    terminal.say(*shown)
    out = capsys.readouterr().out
    assert active(out, lines=True) == []
    assert out.count("\n") == len(shown)


@EACH
def test_status_drawn(text: str) -> None:
    file = io.StringIO()
    console = SafeConsole(width=200)
    console.file = file
    seen = replace(SEEN, lanes=(replace(LANE, owner=text), replace(LANE, id=4, stopped=text)))
    console.print(Group(*body([seen], every_lane=True, rows=20)))
    assert active(file.getvalue(), lines=True) == []
    plain = io.StringIO()
    console.file = plain
    quiet = replace(SEEN, lanes=(replace(LANE, owner="x"), replace(LANE, id=4, stopped="x")))
    console.print(Group(*body([quiet], every_lane=True, rows=20)))
    assert file.getvalue().count("\n") == plain.getvalue().count("\n"), "no line more"


def test_markup_and_emoji_of_strangers_are_text() -> None:
    console = SafeConsole(width=100)
    console.file = io.StringIO()
    table = Table("head")
    table.add_row(CORPUS["markup"])
    console.print(table, CORPUS["markup"])
    assert console.file.getvalue().count(CORPUS["markup"]) == 2


@EACH
@pytest.mark.parametrize("as_json", [False, True])
async def test_tail_and_files_of_events(text: str, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    raw = text.encode("utf-8", "surrogatepass")

    class Record:
        topic, partition, offset = "events", 0, 1
        headers = (("ce_type", raw), ("ce_tenantid", raw), ("ce_subject", raw), (f"ce_{escaped(text)}", raw))
        value = json.dumps({"key": [text]}).encode() if raw.decode("utf-8", "replace") == text else raw

    await Printed(terminal.say, as_json=as_json).take([Record()])
    out = capsys.readouterr().out
    assert active(out, lines=True) == []
    assert out.count("\n") == 1
    written = line(cloud_event(Record.headers, Record.value, "x")).decode()
    assert active(written, lines=True) == []
    assert json.loads(written)["type"] == raw.decode("utf-8", "replace")


@EACH
def test_what_a_chaos_run_found(text: str) -> None:
    report = ControlReport()
    report.red["a"] = text
    assert active(report.table(), lines=True) == []
    assert report.table().count("\n") == 0


# --- logs ----------------------------------------------------------------------------------------------------


def record_of(text: str, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("agent_platform.x", logging.WARNING, "f.py", 1, "it said %s", (text,), info)


@contextmanager
def caught(text: str) -> Iterator[list[BaseException]]:
    """An error full of the text: with a cause, a note, in a group."""
    found: list[BaseException] = []
    yield found
    try:
        try:
            raise ValueError(text)
        except ValueError as cause:
            error = RuntimeError(text)
            error.add_note(text)
            raise ExceptionGroup(text, [error, KeyError(text)]) from cause
    except ExceptionGroup as group:
        found.append(group)


@EACH
def test_a_log_line_is_one_line(text: str) -> None:
    formatted = TextFormatter("worker-1").format(record_of(text))
    assert active(formatted) == []
    assert formatted[23:].startswith("Z WARNING  worker-1 agent_platform.x it said ")
    document = json.loads(formatted := JsonFormatter("worker-1").format(record_of(text)))
    assert active(formatted) == []
    assert {name: document[name] for name in ("level", "process", "logger")} == {
        "level": "warning",
        "process": "worker-1",
        "logger": "agent_platform.x",
    }


@EACH
def test_the_lines_of_a_traceback_are_ours(text: str) -> None:
    with caught("x") as plain:
        pass
    with caught(text) as hostile:
        pass
    assert len(traceback_lines(hostile[0])) == len(traceback_lines(plain[0]))
    shown = TextFormatter("worker-1").format(record_of("x", hostile[0]))
    assert active(shown, lines=True) == []
    _, *others = shown.split("\n")
    assert all(other.startswith("    ") for other in others), "none looks like a record of its own"
    assert any("ValueError: " in other for other in others), "its cause is told"
    formatted = JsonFormatter("worker-1").format(record_of("x", hostile[0]))
    assert active(formatted) == []
    assert json.loads(formatted)["exception"] == [other[4:] for other in others]


def test_an_error_without_text_and_one_that_refers_to_itself() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert traceback_lines(Mute())[-1].endswith("<no text: ValueError>")
    first, second = ValueError("1"), ValueError("2")
    first.__context__, second.__context__ = second, first
    assert len(traceback_lines(first)) < 100


# --- processes -----------------------------------------------------------------------------------------------

PROCESS = """
import asyncio, logging, sys, threading, warnings
from infra.settings import load_settings
from infra.telemetry import logs
text = sys.argv[1].encode().decode("unicode_escape")
settings = load_settings()
logs.start(settings, "worker")
log = logging.getLogger("agent_platform.test")
for level in ("debug", "info", "warning", "error"):
    getattr(log, level)("%s %s", level, text)
logging.getLogger("aiokafka.x").warning("a library")
logging.getLogger("some.library").info("a library informs")
warnings.warn(text)
thread = threading.Thread(target=lambda: int(text))
thread.start(); thread.join()
async def main():
    task = asyncio.create_task(asyncio.sleep(0))
    asyncio.get_running_loop().call_soon(lambda: int(text))
    await asyncio.sleep(0.01)
asyncio.run(main())
raise RuntimeError(text)
"""
FORGED = "a\\x1b[31m\\n2026-01-01T00:00:00.000Z CRITICAL forged\\x9b\\u202e"


def logged(folder: Path, **settings: str) -> str:
    given = {f"AGENT_PLATFORM_{name.upper()}": value for name, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, FORGED],
        cwd=folder, env={"PYTHONPATH": str(Path(__file__).parents[2]), **given},
        capture_output=True, check=False, timeout=patient(60),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, b"")
    return done.stderr.decode()


@pytest.mark.parametrize(("level", "seen"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_is_what_the_setting_says(level: str, seen: int, tmp_path: Path) -> None:
    text = logged(tmp_path, log_level=level)
    ours = [each for each in text.split("\n") if " agent_platform.test " in each]
    assert len(ours) == seen
    assert ("a library informs" in text) == (level == "debug")


def test_every_line_of_a_process_is_told_from_a_forged_one(tmp_path: Path) -> None:
    text = logged(tmp_path)
    assert active(text, lines=True) == []
    begins = [each for each in text.rstrip("\n").split("\n") if not each.startswith("    ")]
    for each in begins:
        time, level, process, logger, _ = each.split(maxsplit=4)
        assert time.endswith("Z")
        assert level in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
        assert process.startswith("worker-")
        assert logger.split(".")[0] in ("agent_platform", "py", "asyncio")
    assert len(begins) == 7, "three levels, a warning, a thread, a callback, the end"


def test_as_json_every_line_is_an_object(tmp_path: Path) -> None:
    text = logged(tmp_path, log_format="json")
    assert active(text, lines=True) == []
    documents: list[dict[str, Any]] = [json.loads(each) for each in text.rstrip("\n").split("\n")]
    assert len(documents) == 7
    for document in documents:
        assert {"time", "level", "process", "logger", "message"} <= document.keys()
    assert documents[-1]["level"] == "critical"
    assert "RuntimeError" in documents[-1]["exception"][-1]


def test_settings_name_both() -> None:
    assert (Settings().log_level, Settings().log_format) == ("info", "text")
