"""Code nodes: the contract with authors, typed failures, checks at publishing, and the life of the workers."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from handlers.steps.code import (
    CODE_BYTES_MAX,
    MODULES,
    RESULT_BYTES_MAX,
    TEXT_BYTES_MAX,
    CodeRunner,
    SandboxUnavailable,
)
from handlers.steps.port import StepCall, StepFailed, StepResult
from schemas.workflow.node_types import Code, Llm
from tests.patience import patient

FOREVER = "while True:\n    pass"


@pytest.fixture
async def runner() -> AsyncIterator[CodeRunner]:
    runner = CodeRunner(processes_max=2, timeout_seconds_max=30)
    await runner.start()
    yield runner
    await runner.stop()


async def failure(runner: CodeRunner, code: str, payload: object = None, timeout_seconds: float = 0.0) -> StepFailed:
    with pytest.raises(StepFailed) as failed:
        await runner.run(code, payload, timeout_seconds)
    return failed.value


def workers() -> set[int]:
    """The workers of this process that live, whoever started them."""
    return {child.pid for child in psutil.Process().children() if is_worker(child)}


def is_worker(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.cmdline()[-1:] == ["subprocess"]
    except psutil.NoSuchProcess:
        return False


async def until_computing(*tasks: asyncio.Task[StepResult]) -> int:
    """The worker that is busy with one of the tasks, as soon as one is."""
    while True:
        for pid in workers():
            with suppress(psutil.NoSuchProcess):
                before = psutil.Process(pid).cpu_times().user
                await asyncio.sleep(0.1)
                if psutil.Process(pid).cpu_times().user - before > 0.02:
                    return pid
        await asyncio.sleep(0.01)
        for task in tasks:
            assert not task.done(), task.exception()


async def until_gone(*pids: int) -> None:
    async with asyncio.timeout(patient(10)):
        while workers() & set(pids):
            await asyncio.sleep(0.01)


async def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await until_gone(*pids)


# The contract


async def test_the_example_of_the_documentation(runner: CodeRunner) -> None:
    code = (
        "total = sum(payload['numbers'])\n"
        "result = {'total': total, 'count': len(payload['numbers'])}\n"
        "print(f'total={total}')"
    )
    call = StepCall(
        node_run_id="1",
        run_id="2",
        tenant_id="t",
        node_id="compute-summary",
        attempt=1,
        config=Code(code=code),
        input={"input_json": {"numbers": [1, 2, 3, 4]}},
        timeout_seconds=5,
    )
    assert await runner.perform(call) == StepResult({"result_json": {"total": 10, "count": 4}}, "total=10\n")


async def test_a_step_of_another_kind_is_a_mistake_of_ours(runner: CodeRunner) -> None:
    call = StepCall("1", "2", "t", "n", 1, config=Llm(prompt="x"), input={})
    with pytest.raises(TypeError, match="Llm"):
        await runner.perform(call)


async def test_without_a_result_the_result_is_null(runner: CodeRunner) -> None:
    assert await runner.run("pass", None) == StepResult({"result_json": None}, None)


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1, 2**64 - 1, -(2**63), 1.5, "", "漢字 é 🎈", [], {}, [1, [2, [3]]], {"a": {"b": [None]}}],
)
async def test_json_goes_in_and_comes_out_unchanged(runner: CodeRunner, value: object) -> None:
    assert (await runner.run("result = payload", value)).output == {"result_json": value}


async def test_tuples_become_lists_and_number_keys_text(runner: CodeRunner) -> None:
    assert (await runner.run("result = {1: (1, 2)}", None)).output == {"result_json": {"1": [1, 2]}}


async def test_large_payloads(runner: CodeRunner) -> None:
    rows = [{"id": at, "name": f"row {at}"} for at in range(10_000)]
    result = await runner.run("result = sum(row['id'] for row in payload)", rows)
    assert result.output == {"result_json": 49_995_000}


async def test_prints_are_kept_in_order_with_what_cannot_be_stored_escaped(runner: CodeRunner) -> None:
    result = await runner.run("import sys\nprint('a', 1)\nprint('b\\x00', file=sys.stderr)", None)
    assert result.text == "a 1\nb\\u0000\n"


async def test_the_clock_stands_still_at_the_start_of_the_run(runner: CodeRunner) -> None:
    code = """
        import datetime, time
        before = (time.time(), time.monotonic(), time.perf_counter(), datetime.datetime.now())
        for number in range(100_000):
            pass
        result = before == (time.time(), time.monotonic(), time.perf_counter(), datetime.datetime.now())
    """
    assert (await runner.run(textwrap.dedent(code), None)).output == {"result_json": True}


async def test_what_authors_are_told_to_import_can_be_imported(runner: CodeRunner) -> None:
    assert runner.check(f"import {MODULES}") is None
    await runner.run(f"import {MODULES}", None)


async def test_runs_share_nothing(runner: CodeRunner) -> None:
    for _ in range(4):
        with pytest.raises(StepFailed, match="NameError"):
            await runner.run("left_behind", None)
        await runner.run("left_behind = payload\nresult = left_behind", "secret")


# Failures


@pytest.mark.parametrize(
    ("code", "failed", "message", "retryable"),
    [
        ("x = 1\n1 / 0", "code_error", "line 2: ZeroDivisionError: division by zero", True),
        ("def f():\n    raise ValueError('no')\nf()", "code_error", "line 2: ValueError: no", True),
        ("exec('\\n\\n\\n1 / 0')", "code_error", "line 1: ZeroDivisionError: division by zero", True),
        ("raise ValueError('\\x00')", "code_error", "line 1: ValueError: \\u0000", True),
        ("raise NotImplementedError('mine')", "code_error", "line 1: NotImplementedError: mine", True),
        ("x = (", "code_error", "line 1: unexpected EOF while parsing", False),
        ("x = '\ud800'", "code_error", "source code is not valid UTF-8 (contains lone surrogates)", False),
        ("x = [0] * 10**9", "code_memory", "line 1: MemoryError: memory limit exceeded", False),
        ("def f(): yield 1", "code_unsupported", "line 1: not supported in code nodes: yield expressions", False),
        ("class A(dict): pass", "code_unsupported", "use plain classes, dataclasses or functions", False),
        ("type X = int", "code_unsupported", "type aliases; write it with functions", False),
        ("raise ValueError('no yield')", "code_error", "line 1: ValueError: no yield", True),
        ("import numpy", "code_unsupported", "anything else belongs in a tool node", False),
        ("open('/etc/passwd')", "code_unsupported", "there are no files; pass what the code needs", False),
        ("import time\ntime.sleep(1)", "code_unsupported", "use the node's delay_seconds", False),
        ("result = {1, 2}", "code_result_invalid", "result is not JSON: TypeError: Object of type set", False),
        ("result = float('nan')", "code_result_invalid", "Out of range float values", False),
        ("result = [1e999]", "code_result_invalid", "Out of range float values", False),
        ("result = {'a': ['\\x00']}", "code_result_invalid", "result/a/0: ", False),
        ("result = {'a\\x00': 1}", "code_result_invalid", "result/a\\u0000: ", False),
        ("result = [2**64]", "code_result_invalid", "result/0: ", False),
        ("result = []\nresult.append(result)", "code_result_invalid", "Circular reference", False),
        ("result = 1\nfor _ in range(80): result = [result]", "code_result_invalid", "nested deeper", False),
        ("result = 1\nfor _ in range(9999): result = [result]", "code_result_invalid", "RecursionError", False),
        (f"result = 'x' * {RESULT_BYTES_MAX}", "output_too_large", "result is larger than", False),
        (f"result = '漢' * {RESULT_BYTES_MAX // 2}", "output_too_large", "result is larger than", False),
        (f"print('x' * {TEXT_BYTES_MAX})", "output_too_large", "printed more than", False),
    ],
)
async def test_failures_are_typed(runner: CodeRunner, code: str, failed: str, message: str, retryable: bool) -> None:
    error = await failure(runner, code)
    assert (error.code, error.retryable) == (failed, retryable)
    assert message in error.message


async def test_a_result_of_exactly_the_limit_passes(runner: CodeRunner) -> None:
    result = await runner.run(f"result = 'x' * {RESULT_BYTES_MAX - 2}", None)
    assert len(result.output["result_json"]) == RESULT_BYTES_MAX - 2


async def test_a_payload_that_is_no_text_is_named(runner: CodeRunner) -> None:
    error = await failure(runner, "result = payload", {"a": "\ud800"})
    assert (error.code, error.retryable) == ("code_input_invalid", False)
    assert "input_json" in error.message


async def test_a_failure_keeps_what_was_printed(runner: CodeRunner) -> None:
    assert (await failure(runner, "print('so far')\n1 / 0")).text == "so far\n"
    assert (await failure(runner, "print('so far')\nresult = {1}")).text == "so far\n"
    endless = await failure(runner, "while True: print('漢' * 100)")
    assert endless.text is not None
    assert 0 < len(endless.text.encode()) <= TEXT_BYTES_MAX


async def test_a_long_message_is_cut(runner: CodeRunner) -> None:
    assert len((await failure(runner, "raise ValueError('x' * 1_000_000)")).message) < 2_000


async def test_a_run_ends_at_its_timeout(runner: CodeRunner) -> None:
    error = await failure(runner, FOREVER, timeout_seconds=0.2)
    assert (error.code, error.retryable) == ("timeout", True)
    assert error.message == "the code ran longer than 0.2 seconds"


async def test_no_node_may_run_longer_than_the_platform_allows() -> None:
    runner = CodeRunner(processes_max=1, timeout_seconds_max=0.2)
    await runner.start()
    for asked in (0.0, 3600.0):
        assert "0.2 seconds" in (await failure(runner, FOREVER, timeout_seconds=asked)).message
    await runner.stop()


# Checks at publishing


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        ("result = payload", None),
        ("from __future__ import annotations\nimport json, math\nfrom datetime import datetime", None),
        ("raise KeyboardInterrupt", None),
        ("undefined_name", None),
        ("try:\n    import numpy\nexcept ImportError:\n    numpy = None", None),
        ("text = 'class A(dict): pass'\n# import numpy", None),
        ("x = (", "line 1: unexpected EOF while parsing"),
        ("\n\ndef f():\n    yield 1", "line 4: not supported in code nodes: yield expressions; build a list"),
        ("x = 1\nclass A(dict): pass", "line 2: not supported in code nodes: class inheritance and metaclasses; use"),
        ("del x", "line 1: not supported in code nodes: the 'del' statement; use .pop(key)"),
        ("async def f():\n    async for x in y: pass", "line 2: not supported in code nodes: async for loops; write"),
        ("\nimport numpy as np", "line 2: ModuleNotFoundError: No module named 'numpy'; available are asyncio, base64"),
        ("from json import nope", "line 1: ImportError: cannot import name 'nope' from 'json'"),
        ("x = 1\ny = '\\ud800'", "line 2: text with a lone surrogate cannot be stored"),
        ("'\ud800'", "source code is not valid UTF-8"),
        ("-" * 60_000 + "1", "line 1: Source is too deeply nested"),
        ("x" * (CODE_BYTES_MAX + 1), f"the code is longer than {CODE_BYTES_MAX} bytes; split it"),
    ],
)
async def test_publishing_names_what_cannot_run_and_the_way_out(
    runner: CodeRunner, code: str, refusal: str | None
) -> None:
    found = runner.check(code)
    assert found is None if refusal is None else found is not None and found.startswith(refusal)


async def test_a_check_runs_nothing_and_waits_for_no_run(runner: CodeRunner) -> None:
    busy = [asyncio.create_task(runner.run(FOREVER, None)) for _ in range(3)]
    await until_computing(*busy)
    assert runner.check(FOREVER) is None
    for task in busy:
        task.cancel()


# The life of the workers


async def test_a_run_does_not_block_the_event_loop(runner: CodeRunner) -> None:
    task = asyncio.create_task(runner.run(FOREVER, None, 1.0))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 2


async def test_more_runs_than_workers_wait_their_turn(runner: CodeRunner) -> None:
    results = await asyncio.gather(*(runner.run("result = payload * 2", number) for number in range(50)))
    assert [result.output["result_json"] for result in results] == [number * 2 for number in range(50)]
    assert len(workers()) <= 3


async def test_a_cancelled_run_ends_at_once_and_frees_its_worker(runner: CodeRunner) -> None:
    for _ in range(3):
        tasks = [asyncio.create_task(runner.run(FOREVER, None)) for _ in range(3)]
        busy = await until_computing(*tasks)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        await until_gone(busy)
    assert (await runner.run("result = 1", None)).output == {"result_json": 1}


async def test_a_worker_killed_while_it_runs_fails_that_run_only(runner: CodeRunner) -> None:
    task = asyncio.create_task(runner.run(FOREVER, None))
    await kill(await until_computing(task))
    with pytest.raises(StepFailed) as failed:
        await task
    assert (failed.value.code, failed.value.retryable) == ("sandbox_crashed", True)
    assert (await runner.run("result = 1", None)).output == {"result_json": 1}


async def test_a_worker_killed_while_idle_is_replaced(runner: CodeRunner) -> None:
    for _ in range(3):
        await kill(*workers())
        answers = []
        for _ in range(2):  # The pool may hand out a worker before it sees that it is dead.
            try:
                answers.append((await runner.run("result = 1", None)).output)
            except StepFailed as failed:
                answers.append({"failed": failed.code, "retryable": failed.retryable})
        assert answers[0] in ({"result_json": 1}, {"failed": "sandbox_crashed", "retryable": True})
        assert answers[1] == {"result_json": 1}
        assert runner.check("x = 1") is None


async def test_a_worker_that_dies_while_it_is_taken_costs_no_attempt(runner: CodeRunner) -> None:
    for _ in range(30):
        for pid in workers():
            os.kill(pid, signal.SIGKILL)
        assert (await runner.run("result = 1", None)).output == {"result_json": 1}


async def test_a_worker_that_does_not_answer_is_killed() -> None:
    runner = CodeRunner(processes_max=1, timeout_seconds_max=30, request_timeout_seconds=0.5)
    await runner.start()
    assert (await failure(runner, FOREVER)).code == "timeout"
    assert (await runner.run("result = 1", None)).output == {"result_json": 1}
    await runner.stop()


async def test_workers_hold_nothing_of_ours(runner: CodeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_PLATFORM_CREDENTIAL_KEYS", "secret")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    await kill(*workers())
    await runner.run("pass", None)
    for pid in workers():
        folder = Path("/proc", str(pid))
        assert (folder / "environ").read_bytes() == b""
        held = {int(entry.name): entry.stat().st_mode for entry in (folder / "fd").iterdir()}
        assert {number: stat.S_ISFIFO(mode) for number, mode in held.items() if number > 2} == {}
        assert "NoNewPrivs:\t1" in (folder / "status").read_text()
        limits = {line[:26].rstrip(): line[26:].split()[0] for line in (folder / "limits").read_text().splitlines()}
        assert (limits["Max core file size"], limits["Max file size"], limits["Max open files"]) == ("0", "0", "32")
    os.close(reader)
    os.close(writer)


PARENT = """
import asyncio, sys
from handlers.steps.code import CodeRunner
async def main():
    runner = CodeRunner(processes_max=2, timeout_seconds_max=600)
    await runner.start()
    await runner.run("pass", None)
    print("ready", flush=True)
    await asyncio.gather(runner.run("while True: pass", None), runner.run("while True: pass", None))
asyncio.run(main())
"""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_busy_workers_die_with_their_parent(by: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        orphans: list[psutil.Process] = []
        while len(orphans) < 2:
            orphans = [child for child in psutil.Process(parent.pid).children() if is_worker(child)]
        parent.send_signal(by)
        parent.wait()
    psutil.wait_procs(orphans, timeout=patient(10))
    assert not [orphan for orphan in orphans if is_worker(orphan)]


async def test_stopping_ends_what_runs_and_leaves_nothing() -> None:
    before = (workers(), threading.active_count())
    runner = CodeRunner(processes_max=2)
    await runner.start()
    tasks = [asyncio.create_task(runner.run(FOREVER, None)) for _ in range(4)]
    await until_computing(*tasks)
    await runner.stop()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StepFailed}
    assert {str(outcome).split(":")[0] for outcome in outcomes} == {"sandbox_crashed", "sandbox_unavailable"}
    await runner.stop()
    assert workers() == before[0]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("code")]


def test_a_process_that_used_the_sandbox_exits_in_order() -> None:
    program = PARENT.replace('    await asyncio.gather(runner.run("while True: pass", None), ', "    await (")
    program = program.replace('runner.run("while True: pass", None))', "runner.stop())")
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=patient(60))
        assert (done.returncode, done.stderr) == (0, b"")


async def test_code_is_refused_when_there_is_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CodeRunner()
    assert (await failure(runner, "pass")).code == "sandbox_unavailable"
    with pytest.raises(SandboxUnavailable, match="not running"):
        runner.check("pass")
    monkeypatch.setenv("MONTY_BIN", "/nowhere/monty")
    with pytest.raises(SandboxUnavailable, match="does not start"):
        await runner.start()
    assert (await failure(runner, "pass")).code == "sandbox_unavailable"
    monkeypatch.setenv("MONTY_BIN", "/bin/true")
    with pytest.raises(SandboxUnavailable, match="does not start"):
        await CodeRunner().start()


async def test_a_sandbox_that_is_not_there_is_not_replaced_by_another() -> None:
    with pytest.raises(SandboxUnavailable, match="bubblewrap is not part of this release; set it to monty"):
        await CodeRunner(sandbox="bubblewrap").start()
