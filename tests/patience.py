"""How long a test waits before it gives up: so long that a machine four times slower fails none of them.

Deadlines are written in seconds of a quiet machine with two cores and stretched here, all by one factor;
AP_TEST_PATIENCE sets another one. What hangs all the same is ended by faulthandler_timeout of pyproject.toml.
"""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("AP_TEST_PATIENCE", "4"))


def patient(seconds: float) -> float:
    """The deadline for what takes at most so many seconds on a quiet machine."""
    return seconds * PATIENCE
