"""Which seeds of the whole simulation are run: some that move with the commit, and all that ever found something.

SIMULATION_SEEDS says how many move, SIMULATION_FIRST which one is the first of them (else the commit decides).
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

SEEDS_A_PUSH = 300
SEEDS_PER_TEST = 20
ONCE_FAILED: Sequence[int] = (55_205_856_335, 55_205_856_402, 463_068_929_164, 709_593_951_959)
"""Seeds at which an invariant once broke: each of them goes here together with what mends it."""

ROOT = Path(__file__).parents[2]
FIRST_WITHOUT_GIT = 0


def batches(environment: Mapping[str, str], commit: str) -> list[tuple[int, ...]]:
    """The seeds of each test. `commit`: the hash of what is checked out; empty if that is not known."""
    count = int(environment.get("SIMULATION_SEEDS") or SEEDS_A_PUSH)
    first = int(environment.get("SIMULATION_FIRST") or _first(commit))
    seeds = [*ONCE_FAILED, *range(first, first + count)]
    return [tuple(seeds[at : at + SEEDS_PER_TEST]) for at in range(0, len(seeds), SEEDS_PER_TEST)]


def _first(commit: str) -> int:
    """Hashes lie far apart: two commits hardly ever share a seed."""
    return int(commit[:10], 16) if commit else FIRST_WITHOUT_GIT


def checked_out() -> str:
    """The hash of the commit that is checked out; empty outside of a repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
