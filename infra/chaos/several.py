"""Several chaos runs judged together: their faults add up, and what one of them found wrong counts for all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from infra.chaos import matrix
from infra.chaos.mix import MixReport
from infra.escaping import escaped


@dataclass(slots=True)
class Several:
    reports: list[MixReport] = field(default_factory=list)

    def add(self, report: MixReport) -> None:
        self.reports.append(report)

    @property
    def counts(self) -> Counter[str]:
        return sum((report.counts for report in self.reports), Counter())

    @property
    def observed(self) -> Counter[str]:
        return sum((report.conclusion.observed for report in self.reports), Counter())

    @property
    def problems(self) -> list[str]:
        return [f"seed {report.seed}: {each}" for report in self.reports for each in report.conclusion.problems]

    def table(self) -> str:
        seeds = [f"seed {report.seed}: {report.conclusion.summary}" for report in self.reports]
        found = self.problems or ["Nothing was lost, doubled, stuck or answered wrongly."]
        return "\n".join([matrix.table(self.counts, self.observed), "", *map(escaped, seeds + found)])

    def document(self) -> dict[str, Any]:
        return {
            "clean": not self.problems,
            "problems": self.problems,
            "seeds": [report.seed for report in self.reports],
            "matrix": matrix.document(self.counts),
            "observed": dict(self.observed),
            "runs": [report.document() for report in self.reports],
        }
