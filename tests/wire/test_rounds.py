"""Rounds of shards cross as columns. Received columns give rows or a ProtocolError."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, following_sizes, split, to_columns, to_rows
from psum.wire.errors import ProtocolError

# Few values, so that columns with one value or with zeros only are frequent.
numbers = st.sampled_from((0, 0, 1, 7))
rows = st.builds(
    ShardRound,
    id=st.integers(0, 2**64 - 1),
    shard=numbers | st.integers(0, 2**32 - 1),
    round=numbers | st.integers(0, 2**64 - 1),
    priority=numbers | st.integers(-(2**63), 2**63 - 1),
    length=numbers,
    offset=numbers,
    outside_size=numbers,
    timed=st.booleans(),
    contributors=numbers,
)
columns = st.lists(st.integers(0, 3), max_size=4)
# The payload of a shard is in one place.
sensible_rows = rows.map(lambda row: row._replace(outside_size=0) if row.length else row)


@given(st.lists(sensible_rows, max_size=5), st.booleans())
def test_rows_come_back_from_their_columns(given: list[ShardRound], brief: bool) -> None:
    """Columns give the rows that they were made from."""
    whole = to_columns(given, brief=brief).SerializeToString()
    assert to_rows(pb.ShardRounds.FromString(whole)) == given


def test_columns_that_are_the_same_for_all_are_short() -> None:
    """A column with one value for all shards has it once, and a column of zeros is empty."""
    short = to_columns([ShardRound(id, round=5, length=64) for id in (1, 2, 3)])
    assert short == pb.ShardRounds(ids=[1, 2, 3], rounds=[5], lengths=[64])


def test_a_first_row_of_another_kind_does_not_make_columns_long() -> None:
    """In an elastic job the roll call has its own round and length. A column has two entries then, if it is to be."""
    given = [ShardRound(9, round=8, priority=5, length=32), *(ShardRound(n, 0, 5, -n, 64) for n in (1, 2, 3))]
    short = to_columns(given, brief=True)
    assert short == pb.ShardRounds(ids=[9, 1, 2, 3], rounds=[8, 5], priorities=[5, -1, -2, -3], lengths=[32, 64])
    assert to_rows(short) == given
    assert list(to_columns(given).rounds) == [8, 5, 5, 5]
    # With two ids, two entries are all of them.
    assert to_rows(to_columns(given[:2], brief=True)) == given[:2]


def test_columns_may_be_written_out() -> None:
    """A simple client may write one value for each shard."""
    long = pb.ShardRounds(ids=[1, 2], shards=[0, 0], rounds=[5, 5], lengths=[64, 64], timed=[False, False])
    assert to_rows(long) == [ShardRound(1, round=5, length=64), ShardRound(2, round=5, length=64)]


@given(columns, st.fixed_dictionaries({}, optional={f.name: columns for f in pb.ShardRounds.DESCRIPTOR.fields[1:]}))
def test_columns_of_different_lengths_are_refused(ids: list[int], others: dict[str, Any]) -> None:
    """A column has as many values as there are ids, two, one, or none. Other lengths raise ProtocolError."""
    message = pb.ShardRounds(ids=ids, **{**others, "placed": [0] * len(others.get("placed", ()))})
    if all(len(column) in (0, 1, len(ids)) or len(column) == 2 < len(ids) for column in others.values()):
        assert len(to_rows(message)) == len(ids)
    else:
        with pytest.raises(ProtocolError, match="expected the same number, two, one, or none"):
            to_rows(message)


def test_more_shards_than_are_expected_are_refused() -> None:
    """The number of rows is checked before they are made."""
    message = pb.ShardRounds(ids=range(5))
    assert len(to_rows(message, 5)) == 5
    with pytest.raises(ProtocolError, match="5 shards; expected at most 4"):
        to_rows(message, 4)


@given(st.lists(rows, min_size=1, max_size=5), st.booleans())
def test_a_payload_in_two_places_is_refused(given: list[ShardRound], brief: bool) -> None:
    """The error names the first such shard. Without it, a payload that follows and that nobody takes would be taken for
    that of the next shard."""
    wrong = [row for row in given if row.length and row.outside_size]
    message = to_columns(given, brief=brief)
    if not wrong:
        assert to_rows(message) == given
        return
    first = wrong[0]
    which = f"shard {first.shard} of key {first.id:#x}, round {first.round}"
    for read in (to_rows, following_sizes):
        with pytest.raises(
            ProtocolError, match=f"^{which}, has {first.length} bytes in the .* {first.outside_size} outside"
        ):
            read(message)


def test_following_payloads_are_counted_by_shard() -> None:
    """One size for all shards means one payload for each shard."""
    assert following_sizes(pb.ShardRounds(ids=[1, 2], placed=[9])) == [9, 9]
    assert following_sizes(pb.ShardRounds(ids=[1, 2], placed=[0, 8])) == [8]
    assert following_sizes(pb.ShardRounds(ids=[1, 2])) == []


def test_lengths_that_do_not_add_up_are_refused() -> None:
    """The sum of the shards' lengths must be the payload's size."""
    shards = [ShardRound(1, length=3), ShardRound(2, length=2)]
    assert [bytes(p) for p in split(memoryview(b"abcde"), shards)] == [b"abc", b"de"]
    for payload in (b"abcd", b"abcdef", b""):
        with pytest.raises(ProtocolError, match="a total of 5 bytes"):
            split(memoryview(payload), shards)
