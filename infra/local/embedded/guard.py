"""Waits for the owner of a data folder to end, however it ends, and stops what it left running.

Started by DataFolder with a pipe as standard input: its end is the end of the owner.
"""

import sys
from pathlib import Path

from infra.local.embedded.processes import Identity
from infra.local.embedded.state import read_state, stop_leftovers


def main(data: Path, owner: Identity) -> None:
    sys.stdin.buffer.read()
    state = read_state(data)
    if state is not None and state.owner == owner:
        stop_leftovers(state)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Identity(int(sys.argv[2]), sys.argv[3]))
