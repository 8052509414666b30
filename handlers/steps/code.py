"""Code nodes: Python of workflow authors, run by a sandboxed interpreter in worker processes of its own."""

from __future__ import annotations

import ast
import asyncio
import json
import math
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillBusy
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from time import monotonic
from typing import Any, BinaryIO, Final, Literal

from pydantic_monty import (
    Monty,
    MontyConversionError,
    MontyCrashedError,
    MontyError,
    MontyRuntimeError,
    MontySession,
    MontySyntaxError,
    ResourceLimits,
)
from pydantic_monty._binary import find_monty_binary

from handlers.steps.port import StepCall, StepFailed, StepResult
from schemas.problems import Problems, is_storable, printable, scrub
from schemas.workflow.node_types import Code

CODE_BYTES_MAX: Final = 65_536
RESULT_BYTES_MAX: Final = 1_048_576
TEXT_BYTES_MAX: Final = 262_144
MEMORY_BYTES_MAX: Final = 64 * 1_048_576
MESSAGE_LENGTH_MAX: Final = 1_000
RECURSION_DEPTH_MAX: Final = 200
SUSPENSIONS_MAX: Final = 100  # Each is one question to us (a file, a sleep, an unknown name): answered with no.
RUNS_PER_WORKER_MAX: Final = 1_000
CHECK_SECONDS_MAX: Final = 2.0
QUEUE_SECONDS_MAX: Final = 20.0  # For the turn of a check: says nothing about its code.
DEAD_WORKERS_MAX: Final = 4  # Workers that may turn out to be dead before one runs the code.
DEAD_SECONDS_MAX: Final = 0.1  # A worker that was dead already fails at once: so soon after it was taken.
KILL_GRACE_SECONDS: Final = 1.0  # How long the interpreter may take to notice that its time is up.
ADDRESS_SPACE_BYTES_MAX: Final = 768 * 1_048_576  # Backstop; an idle worker has 180 MiB mapped, 9 MiB resident.

MODULES: Final = (
    "asyncio, base64, bisect, collections, copy, csv, dataclasses, datetime, decimal, functools, hashlib, "
    "itertools, json, math, random, re, typing"
)
"""What an author is told that can be imported."""

_BY_THE_PARSER: Final = "The monty syntax parser does not yet support "
_WAYS_OUT: Final = (
    (_BY_THE_PARSER + "class inheritance", "use plain classes, dataclasses or functions"),
    (_BY_THE_PARSER + "yield", "build a list and return it"),
    (_BY_THE_PARSER + "the 'del'", "use .pop(key), or build a new list or dict without the item"),
    (_BY_THE_PARSER, "write it with functions, loops, lists and dicts"),
    ("ModuleNotFoundError: ", f"available are {MODULES}; anything else belongs in a tool node"),
    ("ImportError: cannot import name ", "the module has only part of what CPython's has"),
    ("TimeoutError: sleep limit exceeded", "use the node's delay_seconds"),
    ("PermissionError: Permission denied", "there are no files; pass what the code needs in input_json"),
    (" is not supported in this environment", "pass what the code needs in input_json"),
    ("RuntimeError: suspension limit ", "there is nothing outside to ask; pass what the code needs in input_json"),
)
_RESULT: Final = f"""import json
_ = json.dumps(result, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
_ if len(_) <= {RESULT_BYTES_MAX} else len(_)
"""
_STOP: Final = "raise KeyboardInterrupt\n"

# Run between us and each worker: no secrets, no files, no sockets of ours get past it, and the kernel kills the
# worker with us, which closing its standard input does not do while it computes.
_LAUNCHER: Final = """
import ctypes, os, resource, sys
monty, parent, address_space, *arguments = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, SIGKILL = 1, 38, 9
for option, value in ((PR_SET_PDEATHSIG, SIGKILL), (PR_SET_NO_NEW_PRIVS, 1)):
    if libc.prctl(option, value, 0, 0, 0):
        sys.exit(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
if os.getppid() != int(parent):
    sys.exit("the parent is gone")
limits = {"AS": int(address_space), "CORE": 0, "FSIZE": 0, "NOFILE": 32}
for name, value in limits.items():
    limit = getattr(resource, "RLIMIT_" + name)
    value = min(value, resource.getrlimit(limit)[1] % 2**63)  # -1 is no limit, and nobody may raise one.
    resource.setrlimit(limit, (value, value))
os.closerange(3, 65536)
os.execve(monty, [monty, *arguments], {})
"""


class SandboxUnavailable(Exception):
    """Code nodes cannot be run here; the message says why. There is no other way to run them."""


class SandboxBusy(Exception):
    """A check did not have its turn: later it may."""


class _Run:
    """One use of a worker, which another thread may end at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker_pid: int | None = None
        self._text: list[str] = []
        self._text_bytes = 0
        self.held_at = math.inf
        self.ended = False

    @contextmanager
    def holding(self, worker_pid: int | None) -> Iterator[None]:
        """Inside, the worker is this run's own to kill."""
        with self._lock:
            self._worker_pid = worker_pid
        self.held_at = monotonic()
        if self.ended:
            self.end()
        try:
            yield
        finally:
            with self._lock:
                self._worker_pid = None

    def end(self) -> None:
        with self._lock:
            self.ended = True
            if self._worker_pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(self._worker_pid, signal.SIGKILL)

    def printed(self, _stream: Literal["stdout", "stderr"], text: str) -> None:
        """An exception here would not stop the code, so too much output ends the worker."""
        self._text.append(text[: max(TEXT_BYTES_MAX - self._text_bytes, 0)])
        self._text_bytes += len(text.encode())
        if self.printed_too_much:
            self.end()

    @property
    def printed_too_much(self) -> bool:
        return self._text_bytes > TEXT_BYTES_MAX

    @property
    def text(self) -> str | None:
        kept = printable("".join(self._text)).encode()[:TEXT_BYTES_MAX]
        return kept.decode(errors="ignore") or None


class CodeRunner:
    """The performer of code nodes. Owns `processes_max` workers for runs and one for checks.

    Runs wait in threads, one per worker: the library's own asyncio client aborts the process at exit now and then
    and cannot end a run that computes.
    """

    def __init__(
        self,
        *,
        processes_max: int = 2,
        timeout_seconds_max: float = 30.0,
        request_timeout_seconds: float | None = None,
        sandbox: Literal["monty", "bubblewrap"] = "monty",
    ) -> None:
        """`request_timeout_seconds`: when a worker that does not answer is killed."""
        self._sandbox = sandbox
        self._processes_max = processes_max
        self._timeout_seconds_max = timeout_seconds_max
        self._request_timeout_seconds = request_timeout_seconds or timeout_seconds_max + 2 * KILL_GRACE_SECONDS
        self._pool: Monty | None = None
        self._launcher: BinaryIO | None = None
        self._running: set[_Run] = set()
        # A worker lives no longer than the thread that started it; these live until stop().
        self._threads = ThreadPoolExecutor(processes_max, thread_name_prefix="code")
        self._check_thread = ThreadPoolExecutor(1, thread_name_prefix="code-check")

    async def start(self) -> None:
        """Once. Raises SandboxUnavailable; afterwards `perform` and `check` work."""
        if self._sandbox != "monty":
            raise SandboxUnavailable(f"code_sandbox={self._sandbox} is not part of this release; set it to monty")
        try:
            await asyncio.get_running_loop().run_in_executor(self._check_thread, self._open)
        except (MontyError, OSError, ValueError) as error:
            await self.stop()
            raise SandboxUnavailable(f"the code sandbox does not start: {error}") from error

    def _open(self) -> None:
        self._launcher = _launcher()
        pool = Monty(
            binary_path=f"/proc/{os.getpid()}/fd/{self._launcher.fileno()}",
            min_processes=1,
            max_processes=self._processes_max + 1,
            request_timeout=self._request_timeout_seconds,
            max_checkouts_per_worker=RUNS_PER_WORKER_MAX,
            feed_duration_limit_grace=KILL_GRACE_SECONDS,
        )
        pool.__enter__()
        self._pool = pool
        with _checkout(pool, CHECK_SECONDS_MAX) as session:
            if session.feed_run("6 * 7") != 42:
                raise ValueError("it cannot calculate")

    async def stop(self) -> None:
        """Ends what runs, then the workers. May be called twice, and before start()."""
        pool, self._pool = self._pool, None
        for run in tuple(self._running):
            run.end()
        await asyncio.to_thread(self._close, pool)

    def _close(self, pool: Monty | None) -> None:
        self._threads.shutdown()
        self._check_thread.shutdown()
        if pool is not None:
            pool.__exit__(None, None, None)
        if self._launcher is not None:
            self._launcher.close()

    async def perform(self, call: StepCall) -> StepResult:
        if not isinstance(call.config, Code):
            raise TypeError(f"a code step has no {type(call.config).__name__}")
        return await self.run(call.config.code, call.input.get("input_json"), call.timeout_seconds)

    async def run(self, code: str, payload: Any, timeout_seconds: float = 0.0) -> StepResult:
        """Runs `code` with `payload`; cancelling ends its worker at once. Raises StepFailed."""
        pool = self._pool
        if pool is None:
            raise StepFailed("sandbox_unavailable", "the code sandbox is not running")
        seconds = min(timeout_seconds or self._timeout_seconds_max, self._timeout_seconds_max)
        run = _Run()
        self._running.add(run)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, _execute, pool, run, code, payload, seconds)
        finally:
            run.end()
            self._running.discard(run)

    def check(self, code: str) -> str | None:
        """Why the code can never run in the sandbox, with the way out; None if nothing speaks against it.

        Blocks for about a millisecond, at most twice CHECK_SECONDS_MAX from when its turn comes. Compiles in the
        sandbox; runs nothing of it. Raises SandboxBusy if its turn does not come in QUEUE_SECONDS_MAX.
        """
        pool = self._pool
        if pool is None:
            raise SandboxUnavailable("the code sandbox is not running")
        if len(code.encode(errors="replace")) > CODE_BYTES_MAX:
            return f"the code is longer than {CODE_BYTES_MAX} bytes; split it over several nodes"
        for _ in range(2):  # A worker may have been killed from outside; code that kills it does so again.
            with suppress(MontyCrashedError, StillBusy):
                begun = threading.Event()
                checking = self._check_thread.submit(self._check, pool, code, begun)
                if not begun.wait(QUEUE_SECONDS_MAX):
                    checking.cancel()
                    raise SandboxBusy("the code sandbox is busy with other checks")
                return checking.result(CHECK_SECONDS_MAX)
        return "the code cannot be compiled within the sandbox's limits; make it simpler"

    def _check(self, pool: Monty, code: str, begun: threading.Event) -> str | None:
        begun.set()
        with _checkout(pool, CHECK_SECONDS_MAX) as session:
            try:
                session.feed_run(_STOP + code)
            except (MontySyntaxError, MontyRuntimeError) as error:
                if not isinstance(error.exception(), KeyboardInterrupt):
                    return _placed(error, -1)
        tree = _parsed(code)
        refused = chain(_refused_imports(pool, tree), _refused_texts(tree))
        return next((f"line {line}: {why}" for line, why in refused), None)


def _launcher() -> BinaryIO:
    """An executable file that no disk holds, so that nothing stays behind if we are killed."""
    start = (sys.executable, "-ISB", "-c", _LAUNCHER, find_monty_binary(), os.getpid(), ADDRESS_SPACE_BYTES_MAX)
    draft = os.memfd_create("code-sandbox-launcher")
    with open(draft, "w") as file:
        file.write(f'#!/bin/sh\nexec {shlex.join(map(str, start))} "$@"\n')
        file.flush()
        return open(f"/proc/self/fd/{draft}", "rb")  # What is open for writing cannot be executed.


def _checkout(pool: Monty, seconds: float) -> MontySession:
    limits = ResourceLimits(
        max_feed_duration_secs=seconds,
        max_memory=MEMORY_BYTES_MAX,
        max_recursion_depth=RECURSION_DEPTH_MAX,
        max_suspensions=SUSPENSIONS_MAX,
        max_total_sleep_secs=0.0,
    )
    # The clock stands still at the start of the run: the date is known, but nothing can be timed.
    return pool.checkout(limits=limits, os_policy={"datetime": datetime.now(UTC)})


def _execute(pool: Monty, run: _Run, code: str, payload: Any, seconds: float) -> StepResult:
    """Run the code; by another worker if the first one was dead already, which shows only when it is used."""
    for further in range(DEAD_WORKERS_MAX, 0, -1):
        run.held_at = math.inf
        try:
            return _execute_once(pool, run, code, payload, seconds)
        except MontyCrashedError as error:
            was_dead = not (run.ended or run.text or error.timed_out) and monotonic() - run.held_at < DEAD_SECONDS_MAX
            if further == 1 or not was_dead:
                raise _crash(error, run, seconds) from None
    raise AssertionError("the last try returns or raises")


def _execute_once(pool: Monty, run: _Run, code: str, payload: Any, seconds: float) -> StepResult:
    if run.ended:
        raise StepFailed("sandbox_unavailable", "the run was ended before it began")
    try:
        with _checkout(pool, seconds) as session, run.holding(session.worker_pid):
            try:
                session.feed_run(code, inputs={"payload": payload, "result": None}, print_callback=run.printed)
            except MontyRuntimeError as error:
                raise _runtime_failure(error, seconds, run.text) from None
            return StepResult({"result_json": _result(session, run.text)}, run.text)
    except MontySyntaxError as error:
        raise StepFailed("code_error", _placed(error), retryable=False) from None
    except MontyConversionError as error:
        raise StepFailed("code_input_invalid", _said(error), retryable=False) from None


def _result(session: MontySession, text: str | None) -> Any:
    """JSON is made inside, where its memory is bounded too."""
    try:
        encoded = session.feed_run(_RESULT)
    except MontyRuntimeError as error:
        if isinstance(error.exception(), MemoryError | TimeoutError):
            message = "result cannot be turned into JSON within the limits"
            raise StepFailed("output_too_large", message, retryable=False, text=text) from None
        raise _invalid(f"result is not JSON: {_said(error)}", text) from None
    if not isinstance(encoded, str) or len(encoded.encode()) > RESULT_BYTES_MAX:
        message = f"result is larger than {RESULT_BYTES_MAX} bytes as JSON"
        raise StepFailed("output_too_large", message, retryable=False, text=text)
    try:
        result = json.loads(encoded)  # orjson would round large integers in silence.
    except (ValueError, RecursionError) as error:
        raise _invalid(f"result is not JSON: {error}", text) from None
    if not is_storable(result):
        problems = Problems()
        scrub(result, problems)
        found = problems.found[0]
        raise _invalid(f"result{found.pointer}: {found.detail}", text)
    return result


def _invalid(message: str, text: str | None) -> StepFailed:
    return StepFailed("code_result_invalid", message[:MESSAGE_LENGTH_MAX], retryable=False, text=text)


def _runtime_failure(error: MontyRuntimeError, seconds: float, text: str | None) -> StepFailed:
    message = _placed(error)
    said = _said(error)
    if said.startswith("TimeoutError: feed time limit exceeded"):
        return StepFailed("timeout", f"the code ran longer than {seconds:g} seconds", text=text)
    if isinstance(error.exception(), MemoryError):
        return StepFailed("code_memory", message, retryable=False, text=text)
    if said.startswith("UnicodeEncodeError") and not error.traceback():
        return StepFailed("code_input_invalid", f"input_json: {said}", retryable=False)
    if _way_out(said):
        return StepFailed("code_unsupported", message, retryable=False, text=text)
    return StepFailed("code_error", message, text=text)


def _crash(error: MontyCrashedError, run: _Run, seconds: float) -> StepFailed:
    if run.printed_too_much:
        message = f"the code printed more than {TEXT_BYTES_MAX} bytes"
        return StepFailed("output_too_large", message, retryable=False, text=run.text)
    if error.timed_out:
        return StepFailed("timeout", f"the code ran longer than {seconds:g} seconds", text=run.text)
    return StepFailed("sandbox_crashed", f"the worker of the code sandbox ended: {_said(error)}", text=run.text)


def _said(error: MontyError) -> str:
    return printable(str(error)[:MESSAGE_LENGTH_MAX])


def _way_out(said: str) -> str | None:
    return next((way for sign, way in _WAYS_OUT if sign in said), None)


def _placed(error: MontySyntaxError | MontyRuntimeError, shift: int = 0) -> str:
    """What happened, in which line of the code, and what to write instead if it is unsupported."""
    said = _said(error)
    what = said.replace(f"NotImplementedError: {_BY_THE_PARSER}", "not supported in code nodes: ")
    way_out = _way_out(said)
    lines = [frame.line for frame in error.traceback() if frame.filename != "<string>"]
    place = f"line {max(lines[-1] + shift, 1)}: " if lines else ""
    return f"{place}{what}; {way_out}" if way_out else f"{place}{what}"


def _parsed(code: str) -> ast.Module:
    """Empty if it does not parse here: the sandbox's grammar is newer than ours, and it found nothing wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return ast.Module(body=[], type_ignores=[])


def _refused_imports(pool: Monty, tree: ast.Module) -> list[tuple[int, str]]:
    """Only those that are always tried; one inside a `try` or a function may not matter. The first is enough."""
    imports = {ast.unparse(node): node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
    with _checkout(pool, CHECK_SECONDS_MAX) as session:
        for statement, node in imports.items():
            try:
                session.feed_run(statement)
            except (MontySyntaxError, MontyRuntimeError) as error:
                return [(node.lineno, _placed(error).removeprefix("line 1: "))]
    return []


def _refused_texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The sandbox would put U+FFFD for a lone surrogate, in silence."""
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    for text in texts:
        if any("\ud800" <= letter <= "\udfff" for letter in str(text.value)):
            yield text.lineno, "text with a lone surrogate cannot be stored; write the whole character"
