"""The load of a chaos run is the seed's choice and nothing else's."""

from __future__ import annotations

from infra.chaos.workload import LONG_SECONDS, TENANTS, job


def test_a_job_is_the_same_for_the_same_seed() -> None:
    assert [job(number, 3) for number in range(40)] == [job(number, 3) for number in range(40)]
    assert job(0, 3).inputs != job(0, 4).inputs


def test_tenants_take_turns_and_share_their_idempotency_keys() -> None:
    one, two = job(10, 3), job(11, 3)
    assert {one.tenant_id, two.tenant_id} == set(TENANTS)
    assert one.key == two.key
    assert one.inputs["owner"] != two.inputs["owner"]


def test_some_step_takes_longer_than_any_lease() -> None:
    assert LONG_SECONDS in [job(number, 3).inputs.get("seconds") for number in range(270)]
