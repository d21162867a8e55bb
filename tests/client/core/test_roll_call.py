"""The roll call's table, and what all members read in it."""

from collections.abc import Mapping

import numpy as np

from psum.client.core.roll_call import Process, Row, Table, contribution, donors, read

#: A process with the largest number.
NEWCOMER = Process(2, (1 << 64) - 1)


def table(rows: Mapping[int, Row]) -> Table:
    """The sum of what ranks contribute."""
    total = np.zeros((4, 4), np.int64)
    for rank, row in rows.items():
        total += contribution(4, rank, row)
    return total


def admitted(*rows: Row | None) -> Process | None:
    """Who is admitted by the ranks 0, 1, … with these rows."""
    return read(table({rank: row for rank, row in enumerate(rows) if row is not None})).admitted


def test_the_sum_has_the_row_of_each_member() -> None:
    """Numbers of 64 bits arrive as they are, and a rank that has not contributed has no row, whatever its number is."""
    given = {0: Row(0), 1: Row((1 << 64) - 1, leaving=True, candidate=NEWCOMER), 3: Row(5, ready=False)}
    rows = read(table(given)).rows
    assert rows == given
    assert list(rows) == [0, 1, 3]


def test_a_process_is_admitted_that_all_members_name() -> None:
    """Not if one names none, or another one, also of the same rank."""
    one, two = Row(1, candidate=NEWCOMER), Row(2, candidate=NEWCOMER)
    assert admitted(one, two) == NEWCOMER
    for other in (None, Process(3, 7), Process(2, 7)):
        assert admitted(one, Row(2, candidate=other)) is None
    assert admitted(Row(1), Row(2)) is None


def test_a_process_waits_until_its_rank_has_no_row() -> None:
    """The process before it has contributed, so it may be a member still."""
    row = Row(1, candidate=NEWCOMER)
    assert admitted(row, None, row) is None


def test_those_who_leave_give_their_state_last() -> None:
    """They may have little time. But if there are no others, they do it. Who has no state gives none."""
    members = {0: Row(1, leaving=True), 1: Row(2), 2: Row(3, ready=False), 3: Row(4)}
    assert donors(members) == (1, 3, 0)


def test_who_leaves_is_no_member_after_the_boundary() -> None:
    """Others stay, also one that has no state yet."""
    reading = read(table({0: Row(1, leaving=True), 1: Row(2), 2: Row(3, ready=False)}))
    assert reading.leaving == {0}
    assert reading.members == (1, 2)


def test_a_table_that_changes_is_read_again() -> None:
    """The caller may use the memory of a table for the next one."""
    memory = table({0: Row(1), 1: Row(2)})
    first = read(memory)
    assert read(memory) is first
    memory[1] = 0
    assert (first.members, read(memory).members) == ((0, 1), (0,))
