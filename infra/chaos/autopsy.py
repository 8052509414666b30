"""What is known where a chaos run could not go on: its errors, and how every process of the stack was then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from infra.local.embedded.processes import is_alive, log_tail
from infra.local.embedded.state import Started, State, read_state

ERROR_CHARACTERS_MAX = 500


def errors(error: BaseException) -> list[str]:
    """What went wrong, without the groups that it came in; what went wrong alike is counted, the first one shown."""
    kinds: Counter[str] = Counter()
    firsts: dict[str, str] = {}
    for each in _leaves(error):
        kind = type(each).__name__
        kinds[kind] += 1
        firsts.setdefault(kind, str(each)[:ERROR_CHARACTERS_MAX] or "without a word")
    return [f"{kind}, {count} times, the first: {firsts[kind]}" for kind, count in kinds.items()]


def processes(folder: Path) -> list[str]:
    """One line for each process of a data folder: alive or not, how often started again, what it waits for, its log."""
    state = read_state(folder)
    if state is None:
        return [f"nothing is known to run in {folder}"]
    known = {f"{each.role}-{each.index}" for each in state.processes}
    lines = [_line(state, each) for each in state.processes]
    return lines + [
        f"{name}: {why}" for name, why in state.waiting.items() if name not in known | {"postgres", "kafka"}
    ]


def _line(state: State, process: Started) -> str:
    name = f"{process.role}-{process.index}"
    # A server is known to its keeper by its role alone: there is one of each.
    reason = state.waiting.get(name) or state.waiting.get(process.role, "")
    life = "alive" if is_alive(process.identity) else "ended"
    waits = f", waiting: {reason}" if reason else ""
    last = log_tail(Path(process.log), ()) or "none"
    return (
        f"{name} (process {process.identity.pid}): {life}, started again {process.restarts} times{waits};"
        f" last line of its log: {last}"
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
