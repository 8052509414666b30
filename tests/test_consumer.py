"""What the client library cannot decode is decoded here: whole batches, leniently, each record at its offset."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CorruptRecordException
from hypothesis import given
from hypothesis import strategies as st

from bus.lanes import GAPS_MAX, Lane
from bus.record_batches import decoded, keyed
from bus.store import Claimed
from tests.poison.raw import SNAPPY, RawRecord, batch

PLACE = TopicPartition("ingress", 3)
BODY_AT = 61
ATTRIBUTES_AT = 21
PRODUCER_AT = 43
GZIP, CONTROL, APPEND_TIME, TRANSACTIONAL = 1, 0x20, 0x08, 0x10
MARKER = CONTROL | TRANSACTIONAL

bytes_or_none = st.none() | st.binary(max_size=200)
records = st.builds(
    RawRecord,
    bytes_or_none,
    st.lists(st.tuples(st.binary(max_size=20), bytes_or_none), max_size=5),
    bytes_or_none,
)


@dataclass(frozen=True)
class Stored:
    """A batch as the broker keeps it: at an offset."""

    data: bytes
    base: int

    def __bytes__(self) -> bytes:
        return struct.pack(">q", self.base) + self.data[8:]

    def with_attributes(self, attributes: int) -> Stored:
        data = self.data[:ATTRIBUTES_AT] + struct.pack(">h", attributes) + self.data[ATTRIBUTES_AT + 2 :]
        return Stored(data, self.base)

    def of(self, producer_id: int, attributes: int = TRANSACTIONAL) -> Stored:
        """As a producer with this id wrote it."""
        data = self.data[:PRODUCER_AT] + struct.pack(">q", producer_id) + self.data[PRODUCER_AT + 8 :]
        return Stored(data, self.base).with_attributes(attributes)

    def with_body(self, body: bytes) -> Stored:
        head = self.data[:8] + struct.pack(">i", BODY_AT - 12 + len(body)) + self.data[12:BODY_AT]
        return Stored(head + body, self.base)


def stored(base: int, *of: RawRecord, codec: int = 0) -> Stored:
    return Stored(batch(of, codec=codec, timestamp=1_000.0), base)


def values(data: bytes, offset: int = 0) -> tuple[list[tuple[int, bytes | None]], int]:
    found, after = decoded(PLACE, data, offset)
    return [(record.offset, record.value) for record in found], after


@given(st.lists(st.lists(records, min_size=1, max_size=4), max_size=4))
def test_what_was_written_is_read(batches: Sequence[Sequence[RawRecord]]) -> None:
    data, written, offset = b"", [], 100
    for of in batches:
        data += bytes(stored(offset, *of))
        written += [(offset + number, record) for number, record in enumerate(of)]
        offset += len(of)
    found, after = decoded(PLACE, data, 100)
    assert after == offset
    assert [(each.offset, each.key, each.value) for each in found] == [(at, r.key, r.value) for at, r in written]
    for each, (_, record) in zip(found, written, strict=True):
        names = [(name.decode("utf-8", "replace"), value) for name, value in record.headers]
        assert list(each.headers) == names
        assert (each.topic, each.partition, each.timestamp) == ("ingress", 3, 1_000_000)


@given(st.binary(max_size=300), st.integers(1, 5))
def test_a_batch_of_rubbish_gives_a_bare_record_for_each_offset(rubbish: bytes, count: int) -> None:
    broken = stored(7, *[RawRecord(b"x")] * count).with_body(b"\xff" * 12 + rubbish)
    found, after = decoded(PLACE, bytes(broken) + bytes(stored(7 + count, RawRecord(b"good"))), 7)
    assert [each.offset for each in found] == list(range(7, 8 + count))
    assert [(each.value, each.headers) for each in found[:-1]] == [(None, ())] * count
    assert (found[-1].value, after) == (b"good", 8 + count)


def test_a_fetch_that_ends_within_a_batch_gives_the_whole_ones() -> None:
    data = bytes(stored(0, RawRecord(b"a"))) + bytes(stored(1, RawRecord(b"b")))
    for cut in (1, 30, BODY_AT):
        assert values(data[:-cut]) == ([(0, b"a")], 1)


def test_records_before_the_wanted_one_are_left_out() -> None:
    data = bytes(stored(10, RawRecord(b"a"), RawRecord(b"b"), RawRecord(b"c")))
    assert values(data, 12) == ([(12, b"c")], 13)


def test_markers_of_transactions_are_passed_over() -> None:
    marker = stored(1, RawRecord(b"commit")).with_attributes(CONTROL)
    data = bytes(stored(0, RawRecord(b"a"))) + bytes(marker)
    assert values(data) == ([(0, b"a")], 2)


def log(*batches: Stored) -> bytes:
    return b"".join(map(bytes, batches))


ABORTED_AND_COMMITTED = log(
    stored(0, RawRecord(b"plain")),
    stored(1, RawRecord(b"7 aborts"), RawRecord(b"7 aborts too")).of(7),
    stored(3, RawRecord(b"8 commits")).of(8),
    stored(4, RawRecord(b"rubbish")).with_body(b"\xff" * 9).of(7),
    stored(5, RawRecord(b"7 outside")).of(7, 0),
    stored(6, RawRecord(b"abort")).of(7, MARKER),
    stored(7, RawRecord(b"7 commits")).of(7),
    stored(8, RawRecord(b"commit")).of(8, MARKER),
    stored(9, RawRecord(b"commit")).of(7, MARKER),
    stored(10, RawRecord(b"7 aborts again")).of(7),
    stored(11, RawRecord(b"abort")).of(7, MARKER),
)


@pytest.mark.parametrize("aborted", [[(7, 1), (7, 10)], [(7, 10), (7, 1)]])
def test_what_was_aborted_is_left_out_and_nothing_else(aborted: list[tuple[int, int]]) -> None:
    found, after = decoded(PLACE, ABORTED_AND_COMMITTED, 0, aborted)
    assert [each.value for each in found] == [b"plain", b"8 commits", b"7 outside", b"7 commits"]
    assert after == 12


def test_a_fetch_that_begins_within_an_aborted_transaction_leaves_its_rest_out() -> None:
    rest = ABORTED_AND_COMMITTED[len(bytes(stored(0, RawRecord(b"plain")))) :]
    for offset, values in ((1, [b"8 commits", b"7 outside", b"7 commits"]), (4, [b"7 outside", b"7 commits"])):
        found, after = decoded(PLACE, rest, offset, [(7, 1), (7, 10)])
        assert ([each.value for each in found], after) == (values, 12)


def test_gzip_is_undone_and_what_has_no_decoder_is_bare() -> None:
    plain = stored(0, RawRecord(b"a"))
    squeezed = plain.with_body(gzip.compress(plain.data[BODY_AT:])).with_attributes(GZIP)
    assert values(bytes(squeezed)) == ([(0, b"a")], 1)
    assert values(bytes(plain.with_body(b"not gzip").with_attributes(GZIP))) == ([(0, None)], 1)
    assert values(bytes(plain.with_attributes(7))) == ([(0, None)], 1)
    assert values(bytes(stored(0, RawRecord(b"a"), codec=SNAPPY)))[1] == 1


def test_the_time_is_the_brokers_where_the_topic_says_so() -> None:
    (record,), _ = decoded(PLACE, bytes(stored(0, RawRecord(b"a")).with_attributes(APPEND_TIME)), 0)
    assert (record.timestamp, record.timestamp_type) == (1_000_000, 1)


def test_a_format_of_old_is_an_error() -> None:
    data = bytearray(bytes(stored(0, RawRecord(b"a"))))
    data[16] = 1
    with pytest.raises(CorruptRecordException, match="magic 1"):
        decoded(PLACE, bytes(data), 0)


# --- records of some keys ----------------------------------------------------------------------------------------


@given(st.lists(st.lists(records, min_size=1, max_size=4), max_size=4), st.sets(st.integers(0, 15)), st.booleans())
def test_records_of_some_keys_are_those_and_no_others(
    batches: Sequence[Sequence[RawRecord]], chosen: set[int], squeezed: bool
) -> None:
    data, offset = b"", 100
    for of in batches:
        one = stored(offset, *of)
        if squeezed:
            one = one.with_body(gzip.compress(one.data[BODY_AT:])).with_attributes(GZIP)
        data += bytes(one)
        offset += len(of)
    everything, after = decoded(PLACE, data, 100)
    keys = {each.key for number, each in enumerate(everything) if number in chosen and each.key is not None}
    found, place = keyed(PLACE, data, 100, keys)
    assert place == after
    assert [(each.key, tuple(each.headers)) for each in found] == [
        (each.key, each.headers) for each in everything if each.key in keys
    ]


@given(st.binary(max_size=300), st.integers(1, 5))
def test_a_batch_of_rubbish_stops_nobody_who_waits_for_a_key(rubbish: bytes, count: int) -> None:
    broken = stored(7, *[RawRecord(b"x")] * count).with_body(rubbish)
    good = stored(7 + count, RawRecord(b"good", key=b"k" * 36))
    found, after = keyed(PLACE, bytes(broken) + bytes(good), 7, {b"k" * 36})
    assert ([each.key for each in found], after) == ([b"k" * 36], 8 + count)


def test_an_aborted_record_of_a_key_is_left_out() -> None:
    data = log(
        stored(0, RawRecord(b"aborted", key=b"k")).of(7),
        stored(1, RawRecord(b"abort")).of(7, MARKER),
        stored(2, RawRecord(b"plain", key=b"k", headers=[(b"n", b"2")])),
    )
    found, after = keyed(PLACE, data, 0, {b"k"}, [(7, 0)])
    assert ([each.headers for each in found], after) == ([[("n", b"2")]], 3)


# --- holes ---------------------------------------------------------------------------------------------------


def lane() -> Lane:
    return Lane(Claimed(lane=0, epoch=1, next_offset=5, position=0, sent=0, floor=0))


def test_a_record_behind_a_known_hole_is_the_next_one() -> None:
    it = lane()
    assert it.takes(8, follows=5)
    assert (it.polled, it.gap) == (9, False)
    assert not it.takes(8, follows=8), "again"


@pytest.mark.parametrize("follows", [-1, 6, 8])
def test_a_record_behind_something_missing_waits(follows: int) -> None:
    it = lane()
    assert not it.takes(8, follows=follows)
    assert (it.polled, it.gap) == (5, True)
    it.gaps = GAPS_MAX
    assert it.takes(8, follows=follows), "believed at last"


def test_a_lane_that_has_taken_all_passes_a_hole_and_no_other_does() -> None:
    it = lane()
    it.passes(5, 9)
    assert (it.polled, it.dealt, it.next_offset) == (9, 9, 5)
    it.passes(5, 20)  # Known before it stood here.
    it.passes(9, 9)
    assert it.polled == 9
    assert it.takes(12, follows=5), "the hole was longer"
    it.passes(13, 20)  # The record at 12 has been taken, and is not dealt with.
    assert (it.polled, it.dealt) == (13, 9)
