"""Memory of a worker: what it has, and the most it had while something lasted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import psutil

SAMPLE_SECONDS = 0.05


def resident_mebibytes(pid: int) -> tuple[float, float]:
    """Of the process, and of all its descendants together."""
    process = psutil.Process(pid)
    children = 0
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            children += child.memory_info().rss
    return process.memory_info().rss / 2**20, children / 2**20


@contextlib.asynccontextmanager
async def peak(pid: int) -> AsyncIterator[list[tuple[float, float]]]:
    """Samples of a process's memory, taken for as long as the block lasts."""
    samples = [resident_mebibytes(pid)]

    async def sample() -> None:
        while True:
            samples.append(resident_mebibytes(pid))
            await asyncio.sleep(SAMPLE_SECONDS)

    sampling = asyncio.create_task(sample())
    try:
        yield samples
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
