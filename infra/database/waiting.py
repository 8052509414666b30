"""What waits in Postgres, over all processes: how much, and for how long the oldest of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from projections.runtime import LEASED, READY

WAITING = f"""SELECT 'steps' AS what, count(*) AS units, min(created_at) AS since
  FROM node_run WHERE listed = {READY}
UNION ALL SELECT 'steps_leased', count(*), min(started_at) FROM node_run WHERE listed = {LEASED}
UNION ALL SELECT 'timers', count(*), extract(epoch FROM min(due_at))::float8
  FROM timer WHERE due_at <= clock_timestamp()
UNION ALL SELECT 'outbox', count(*), NULL FROM outbox
UNION ALL SELECT 'events_unsent', count(*), min(e.at)
  FROM lane l JOIN event e ON e.lane = l.id AND e.position > l.sent
UNION ALL SELECT 'dead_letters', count(*), min(at) FROM dead_letter WHERE status = 'dead'"""


@dataclass(frozen=True, slots=True)
class Units:
    """Units that wait. `oldest_seconds`: since when the oldest does; 0 if none waits, or its age is not known."""

    count: int
    oldest_seconds: float = 0.0


async def waiting(database: Any) -> dict[str, Units]:
    """By what they are: steps, steps_leased, timers (due ones), outbox, events_unsent, dead_letters.

    A step that its lane's owner executes itself is not among the leased ones in its first seconds.

    `database`: a connection or pool of asyncpg whose role sees all tenants.
    """
    rows = await database.fetch(
        f"SELECT what, units, greatest(0, extract(epoch FROM clock_timestamp())::float8 - since) AS age"
        f" FROM ({WAITING}) AS w(what, units, since)"
    )
    return {row["what"]: Units(row["units"], row["age"] or 0.0) for row in rows}
