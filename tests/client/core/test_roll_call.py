"""The roll call's table, and what all members read in it."""

import numpy as np

from psum.client.core.roll_call import Process, Row, Table, admitted, contribution, donors, leaving, rows

#: A process with the largest number.
NEWCOMER = Process(2, (1 << 64) - 1)


def table(**given: Row) -> Table:
    """The sum of what the ranks 0, 1, … contribute, given as r0, r1, …"""
    total = np.zeros((4, 4), np.int64)
    for name, row in given.items():
        total += contribution(4, int(name[1:]), row)
    return total


def test_the_sum_has_the_row_of_each_member() -> None:
    """Numbers of 64 bits arrive as they are, and a rank that has not contributed has no row, whatever its number is."""
    given = {0: Row(0), 1: Row((1 << 64) - 1, leaving=True, candidate=NEWCOMER), 3: Row(5, ready=False)}
    read = rows(table(**{f"r{rank}": row for rank, row in given.items()}))
    assert read == given
    assert list(read) == [0, 1, 3]


def test_a_process_is_admitted_that_all_members_name() -> None:
    """Not if one names none, or another one, also of the same rank."""
    one, two = Row(1, candidate=NEWCOMER), Row(2, candidate=NEWCOMER)
    assert admitted({0: one, 1: two}) == NEWCOMER
    for other in (None, Process(3, 7), Process(2, 7)):
        assert admitted({0: one, 1: Row(2, candidate=other)}) is None
    assert admitted({0: Row(1), 1: Row(2)}) is None


def test_a_process_waits_until_its_rank_has_no_row() -> None:
    """The process before it has contributed, so it may be a member still."""
    row = Row(1, candidate=NEWCOMER)
    assert admitted({0: row, 2: row}) is None


def test_those_who_leave_give_their_state_last() -> None:
    """They may have little time. But if there are no others, they do it. Who has no state gives none."""
    members = {0: Row(1, leaving=True), 1: Row(2), 2: Row(3, ready=False), 3: Row(4)}
    assert donors(members) == (1, 3, 0)
    assert leaving(members) == {0}
