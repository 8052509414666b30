"""All checks on one system, in the order that lets one scan serve several."""

from __future__ import annotations

from infra.history.verify import tenants
from infra.history.verify.commands_topic import check_consumed
from infra.history.verify.events_topic import check_events_topic
from infra.history.verify.log import check_log
from infra.history.verify.report import Report
from infra.history.verify.stuck import check_stuck
from infra.history.verify.system import examined


async def verify(
    database_url: str,
    kafka_bootstrap: str,
    prefix: str = "",
    *,
    lease_seconds: float = 8.0,
    patience_seconds: float = 10.0,
) -> Report:
    """Check I1-I7 and I9-I12. `database_url`: postgresql://…

    Reads one snapshot of Postgres and the topics as they stand right after it, so work may go on meanwhile;
    what is recorded but not yet acknowledged by Kafka has `patience_seconds` to arrive. Memory holds one aggregate
    and one partition's keys at a time.
    """
    async with examined(
        database_url, kafka_bootstrap, prefix, lease_seconds=lease_seconds, patience_seconds=patience_seconds
    ) as system:
        causes = await check_log(system)
        await check_stuck(system)
        await check_events_topic(system)
        await check_consumed(system, causes)
        await tenants.check_rows(system)
        return system.report
