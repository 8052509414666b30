"""Checking the invariants of a live or resting system from Postgres and Kafka alone."""

from infra.history.verify.report import INVARIANTS, Report
from infra.history.verify.run import verify

__all__ = ["INVARIANTS", "Report", "verify"]
