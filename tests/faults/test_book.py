"""I8 by the book of effects: which repeats are allowed, and which are told."""

from __future__ import annotations

from infra.chaos.book import Effect, Lease, problems

KEY, RUN, LEASE = "k1", "r1", 8.0


def effect(token: int, *, key: str = KEY, node: str = "one") -> Effect:
    return Effect(key, 1, token, "t1", RUN, node, "-", 1, 0.0)


def kinds(happened: list[Effect], leases: dict[tuple[str, int], Lease]) -> list[str]:
    return [kind for kind, _ in problems(happened, leases, LEASE)]


FIRST = {(KEY, 1): Lease(100.0, requeued=False)}
SECOND = FIRST | {(KEY, 2): Lease(108.0, requeued=True)}


def test_a_repeat_after_the_lease_ran_out_is_allowed() -> None:
    assert kinds([effect(1), effect(2)], SECOND) == []


def test_a_repeat_before_the_lease_ran_out_is_told() -> None:
    early = FIRST | {(KEY, 2): Lease(103.0, requeued=True)}
    assert kinds([effect(1), effect(2)], early) == ["repeat before the lease ran out"]


def test_another_attempt_need_not_wait() -> None:
    retried = FIRST | {(KEY, 2): Lease(100.5, requeued=False)}
    assert kinds([effect(1), effect(2)], retried) == []


def test_two_effects_under_one_lease_are_told() -> None:
    assert kinds([effect(1), effect(1)], FIRST) == ["two effects under one lease"]


def test_an_effect_that_comes_late_under_an_old_lease_is_told() -> None:
    assert kinds([effect(2), effect(1)], SECOND) == ["effect under an old lease"]


def test_an_effect_without_a_lease_is_told() -> None:
    assert kinds([effect(3)], SECOND) == ["effect without a lease"]


def test_a_repeat_under_another_key_is_told() -> None:
    leases = FIRST | {("k2", 1): Lease(100.0, requeued=False)}
    assert kinds([effect(1), effect(1, key="k2")], leases) == ["repeat under another key"]
