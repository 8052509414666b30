"""Folding the event log anew: compare the projection tables with it, repair what differs, or fill other tables."""

from infra.history.rebuild.report import Difference, Progress, RebuildReport
from infra.history.rebuild.run import rebuild
from infra.history.rebuild.target import TargetRefused

__all__ = ["Difference", "Progress", "RebuildReport", "TargetRefused", "rebuild"]
