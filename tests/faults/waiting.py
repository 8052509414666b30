"""Waiting for what must come about, however long this machine takes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from tests.patience import patient

PATIENCE_SECONDS = patient(60.0)


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Return once the condition holds. Raises TimeoutError with what was waited for."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                holds = condition()
                if await holds if inspect.isawaitable(holds) else holds:
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise TimeoutError(f"waited {PATIENCE_SECONDS:g} s for this: {what}") from None
