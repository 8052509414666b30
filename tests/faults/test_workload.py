"""The load of a chaos run is the seed's choice and nothing else's."""

from __future__ import annotations

from infra.chaos.workload import job


def test_a_job_is_the_same_for_the_same_seed() -> None:
    assert [job(number, 3) for number in range(40)] == [job(number, 3) for number in range(40)]
    assert job(0, 3).inputs != job(0, 4).inputs
