"""Folding the event log anew: compare the projection tables with it, repair what differs, or fill other tables."""

from infra.rebuild.report import Difference, Progress, RebuildReport
from infra.rebuild.run import rebuild
from infra.rebuild.target import TargetRefused

__all__ = ["Difference", "Progress", "RebuildReport", "TargetRefused", "rebuild"]
