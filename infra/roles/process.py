"""The life of a role's process: its signals, its background work, its memory."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

from bus.deciding import DecidingTime

INTERRUPT_SECONDS = 0.25


def freeze_start_up_objects() -> None:
    """What is there at start-up stays; a batch makes many short-lived objects, which need no frequent collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@contextlib.contextmanager
def interrupting(deciding: DecidingTime) -> Iterator[None]:
    """Look now and then whether a decision still ends: a timer of this process's CPU time, for its main thread."""
    former = signal.signal(signal.SIGVTALRM, lambda number, frame: deciding.interrupt())
    signal.setitimer(signal.ITIMER_VIRTUAL, INTERRUPT_SECONDS, INTERRUPT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, former)


@contextlib.asynccontextmanager
async def stopping() -> AsyncIterator[asyncio.Event]:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def working(stop: asyncio.Event, *work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these in the background. One that ends by itself ends the role: what it did must not stay undone."""
    tasks = [asyncio.ensure_future(each) for each in work]
    for task in tasks:
        task.add_done_callback(lambda _: stop.set())
    stopped_by_us = False
    try:
        yield
        stopped_by_us = True
    finally:
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended if stopped_by_us else ():
        task.result()
