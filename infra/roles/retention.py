"""What is kept for how long: the settings as rules of retention."""

from __future__ import annotations

from gateway.audit_table import AUDITS
from infra.settings import Settings
from outbox.ended import Ended
from outbox.retention import DAY_SECONDS, INBOX, OUTCOMES, Aged
from outbox.tables import DEAD_LETTER
from projections.human import TASKS
from projections.runtime import MARKS, NODE_RUNS, RUNS


def aged(settings: Settings) -> tuple[Aged, ...]:
    audit, letter = AUDITS.name, str(DEAD_LETTER.name)
    dead_days, handled_days = settings.retention_dead_letters_days, settings.retention_handled_dead_letters_days
    return (
        INBOX,
        OUTCOMES,
        Aged("audit", audit, "id", "created_at", settings.retention_audits_days * DAY_SECONDS),
        Aged("dead_letter", letter, "id", "at", dead_days * DAY_SECONDS, "status = 'dead'"),
        Aged("handled_dead_letter", letter, "id", "at", handled_days * DAY_SECONDS, "status <> 'dead'"),
    )


def ended(settings: Settings) -> tuple[Ended, ...]:
    """One entry for each class of runs: the conditions of several exclude each other.

    Heads that are named here need a trigger that keeps their ids from being used again (infra.database.schema).
    """
    parts = (NODE_RUNS, MARKS)
    return (
        Ended(RUNS, parts, settings.retention_runs_days * DAY_SECONDS, "h.kind = 'graph'"),
        Ended(RUNS, parts, DAY_SECONDS, "h.kind = 'single'", "single_run"),  # What the platform did for itself.
        Ended(TASKS, (), settings.retention_human_tasks_days * DAY_SECONDS),
    )
