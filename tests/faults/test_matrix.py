"""How the fault matrix counts: several runs add up, against a quarter of each target."""

from __future__ import annotations

from collections import Counter

import pytest

from infra.chaos import matrix
from infra.chaos.mix import MixReport
from infra.chaos.scene import Conclusion
from infra.chaos.several import Several


def test_runs_add_up_until_a_quarter_is_reached() -> None:
    several = Several()
    several.add(MixReport(1, counts=Counter({"gateway killed": 20})))
    assert "gateway killed             20     50 of 200      no" in several.table()
    several.add(MixReport(2, counts=Counter({"gateway killed": 30})))
    assert "gateway killed             50     50 of 200      yes" in several.table()


def test_what_the_matrix_does_not_know_is_not_counted_silently() -> None:
    with pytest.raises(ValueError, match="typo"):
        matrix.rows(Counter({"typo": 1}))


def test_one_run_that_found_something_wrong_spoils_the_sum() -> None:
    several = Several([MixReport(1), MixReport(2, conclusion=Conclusion(problems=["lost run: 1"]))])
    assert several.problems == ["seed 2: lost run: 1"]
