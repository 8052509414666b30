"""I10: whatever one tenant's message caused bears that tenant, in rows and on topic `commands`.

That a record on `events` is the event as the log has it, tenant and all, is I9.
"""

from __future__ import annotations

from collections.abc import Sequence

from infra.history.verify.system import System, removed
from schemas.envelope import Envelope
from schemas.messages import UUID_PATTERN
from schemas.topics import COMMANDS

_ROWS: dict[str, str] = {
    "events of one aggregate": """SELECT aggregate_id, min(tenant_id), max(tenant_id) FROM event
GROUP BY aggregate_id HAVING min(tenant_id) <> max(tenant_id)""",
    "run and event": """SELECT r.id, r.tenant_id, e.tenant_id FROM run r
JOIN event e ON e.aggregate_id = r.id AND e.seq = 1 WHERE e.tenant_id <> r.tenant_id""",
    "node run and run": """SELECT n.id, n.tenant_id, r.tenant_id FROM node_run n
JOIN run r ON r.id = n.run_id WHERE n.tenant_id <> r.tenant_id""",
    "mark and run": """SELECT m.id, m.tenant_id, r.tenant_id FROM run_mark m
JOIN run r ON r.id = m.run_id WHERE m.tenant_id <> r.tenant_id""",
    "run and workflow version": """SELECT r.id, r.tenant_id, v.tenant_id FROM run r
JOIN definition_version v ON v.id = r.workflow_version_id WHERE v.tenant_id <> r.tenant_id""",
    "version and definition": """SELECT v.id, v.tenant_id, d.tenant_id FROM definition_version v
JOIN definition d ON d.id = v.definition_id WHERE v.tenant_id <> d.tenant_id""",
    "outcome and its events": """SELECT o.command_id, o.tenant_id, min(e.tenant_id) FROM command_outcome o
JOIN event e ON e.causation_id = o.command_id::text WHERE e.tenant_id <> o.tenant_id GROUP BY 1, 2""",
    "outbox row and its run": """SELECT o.key, o.tenant_id, r.tenant_id FROM outbox o
JOIN run r ON r.id::text = o.key WHERE o.tenant_id <> r.tenant_id""",
    "timer and its run": """SELECT t.key, t.tenant_id, r.tenant_id FROM timer t
JOIN run r ON r.id::text = t.key WHERE t.tenant_id <> r.tenant_id""",
}
_TENANTS = "SELECT aggregate_id, tenant_id FROM event WHERE seq = 1 AND aggregate_id = ANY($1::uuid[])"


async def check_rows(system: System) -> None:
    for what, sql in _ROWS.items():
        async for row in system.stream(sql):
            system.report.add("I10", [f"{what}: {row[0]} is of {row[1]!r} and of {row[2]!r}"])


async def check_commands(system: System, partition: int, taken: Sequence[tuple[int, Envelope]]) -> None:
    """A command of ours bears the tenant of its aggregate. Those of strangers are judged when they are decided."""
    named = [
        (offset, envelope) for offset, envelope in taken
        if not envelope.fingerprint and UUID_PATTERN.match(envelope.subject)
    ]  # fmt: skip
    rows = await system.fresh.fetch(_TENANTS, sorted({envelope.subject for _, envelope in named}))
    owners = {str(row[0]): row[1] for row in rows}
    lacking = [envelope.subject for _, envelope in named if envelope.subject not in owners]
    gone = await removed(system.fresh, lacking)
    owners |= {id: tenant_id for id, (_, tenant_id) in gone.items()}
    for offset, envelope in named:
        owner = owners.get(envelope.subject, envelope.tenant_id)
        if owner != envelope.tenant_id:
            place = f"{COMMANDS}/{partition}@{offset}"
            problem = f"{place} for {envelope.subject} is of {envelope.tenant_id!r}, that is {owner!r}'s"
            system.report.add("I10", [problem])
