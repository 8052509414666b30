"""From where on a lane's next owner looks for leases that nobody has listed."""

from __future__ import annotations

from bus.lanes import Lane
from bus.store import Claimed


def lane() -> Lane:
    return Lane(Claimed(lane=0, epoch=1, next_offset=0, position=100, sent=100, floor=80))


def test_it_stays_where_it_was_until_all_behind_it_is_listed() -> None:
    """Whoever moves a lane on without having listed anything (`ap lanes skip`) must not hide what its owner left."""
    claimed = lane()
    assert claimed.floor == 80
    claimed.all_listed()
    assert claimed.floor == 100


def test_it_stays_behind_the_oldest_row_that_is_not_listed() -> None:
    owned = lane()
    owned.all_listed()
    owned.unlisted |= {"a": (100, 1.0), "b": (104, 2.0)}
    owned.position = 108
    assert owned.floor == 100
    assert owned.long_unlisted(before=1.5) == ["a"]
    del owned.unlisted["a"]
    assert owned.floor == 104
    del owned.unlisted["b"]
    assert owned.floor == 108
