"""Keeps one server or role running: starts it again whenever it has ended, whatever stood in the way of that."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from time import monotonic

from infra.local.embedded.failures import StackError
from infra.local.embedded.processes import Say
from infra.local.role_process import RoleProcess, Unit

BACK_OFF_SECONDS_MIN = 0.5
BACK_OFF_SECONDS_MAX = 30.0
LOOK_SECONDS = 0.05

Note = Callable[[str, str], None]
"""Called with a unit's name and why it is not running, or "" once it is."""


class Keeper:
    """Starts a unit again, later and later while it ends early or does not start. Only its cancellation ends it.

    `say` hears why whenever that is another reason than before; `note` keeps it for whoever asks meanwhile. Neither
    may be able to do so where there is no space, no descriptor or no memory left: the unit counts more.
    """

    def __init__(
        self,
        unit: Unit,
        *,
        say: Say,
        note: Note,
        healthy_seconds: float,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._unit = unit
        self._say = say
        self._note = note
        self._healthy_seconds = healthy_seconds
        self._pause = pause
        self._back_off_seconds = BACK_OFF_SECONDS_MIN
        self._started = monotonic()
        self._reason = ""

    async def start(self) -> None:
        """Try to start it for the first time; if that fails, `run` goes on trying."""
        self._reason = await self._try()

    async def run(self) -> None:
        while True:
            if self._reason:
                await self._start_again()
            status = self._unit.exit_status()
            if status is None:
                await self._pause(LOOK_SECONDS)
                continue
            if monotonic() - self._started > self._healthy_seconds:
                self._back_off_seconds = BACK_OFF_SECONDS_MIN
            if isinstance(self._unit, RoleProcess):
                self._unit.deaths += 1
            self._reason = f"ended ({how(status)})"

    async def _start_again(self) -> None:
        """A server that did not start has no exit status: nobody else would try again."""
        said = ""
        while self._reason:
            if self._reason != said:
                said = self._reason
                self._tell(f"{self._unit.name} {said}; starting it again in {self._back_off_seconds:g} s")
                self._keep(said)
            await self._pause(self._back_off_seconds)
            self._back_off_seconds = min(self._back_off_seconds * 2, BACK_OFF_SECONDS_MAX)
            self._reason = await self._try()
        if said:
            self._keep("")

    async def _try(self) -> str:
        """Why it cannot be started; nothing if it could."""
        self._started = monotonic()
        try:
            await self._unit.start()
        except StackError as error:
            return f"does not start: {error}"
        except OSError as error:
            place = f": {error.filename}" if error.filename else ""
            return f"does not start: {error.strerror or type(error).__name__}{place}"
        except Exception as error:  # No memory, no thread: what else may be short passes, too.
            return f"does not start: {type(error).__name__}: {error}"
        return ""

    def _tell(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._say(text)

    def _keep(self, reason: str) -> None:
        with contextlib.suppress(OSError):
            self._note(self._unit.name, reason)


def how(status: int) -> str:
    """How a process ended, by its exit code as Python gives it."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
