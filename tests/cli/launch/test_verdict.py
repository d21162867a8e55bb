"""Deciding which failed worker is the cause."""

from psum.cli.launch.verdict import Ending, cause, suspects
from psum.client.observe.fault_report import FaultReport


def ending(rank: int, *about: int, code: int = 1, error: str = "") -> Ending:
    """Return the ending of a worker with a report that these ranks failed, if any."""
    return Ending(rank, code, error, FaultReport("worker_lost", "somebody is gone", about) if about else None)


def test_the_cause_is_the_first_that_was_not_told_of_others() -> None:
    """This holds for any order of endings."""
    victim, other, one, two = ending(0, 1), ending(2, 1), ending(1), ending(3)
    assert cause([victim, one, other]) is one
    assert cause([two, victim, one]) is two
    # If the report is also about the worker itself, as after a disagreement of two ranks, it is not a consequence.
    assert cause([victim, ending(3, 3, 0)]) == ending(3, 3, 0)


def test_where_all_were_told_of_others_the_first_one_counts() -> None:
    """This happens after a round's timeout, which names a rank that still runs."""
    assert cause([ending(2, 1), ending(0, 1)]) == ending(2, 1)


def test_who_is_waited_for() -> None:
    """Running ranks that are reported as failed are waited for until a cause is known."""
    assert suspects([], {0, 1}) == set()
    assert suspects([ending(0, 1)], {1, 2}) == {1}
    assert suspects([ending(0, 1), ending(2, 3, 0)], {1, 3}) == {1, 3}
    assert suspects([ending(0, 1)], {2}) == set()
    assert suspects([ending(0, 1), ending(3)], {1, 2}) == set()
    # A failure about no rank, such as an aggregator's, makes no worker a consequence.
    assert suspects([Ending(0, 1, "", FaultReport("internal", "it failed", ()))], {1}) == set()


def test_how_an_ending_is_told() -> None:
    """The text has the exception, or the status and the report."""
    assert str(ending(1, error="RuntimeError: no")) == "rank 1, RuntimeError: no"
    assert str(ending(1, 0, error="ValueError: x")) == "rank 1, ValueError: x"
    assert str(ending(1, code=-9)) == "rank 1, which was killed by SIGKILL"
    assert str(ending(1, code=-6, error="ValueError: x")) == "rank 1, ValueError: x; it was killed by SIGABRT"
    assert str(ending(1, 0)) == "rank 1, which ended with status 1 after the report: somebody is gone"


def test_the_status_tells_a_consequence_too() -> None:
    """It does so even if the file with the worker's report could not be written."""
    victim = Ending(0, 75, "WorkerLostError: rank 1 is gone", None)
    assert cause([victim, ending(1)]) == ending(1)
    assert suspects([victim], {1}) == set()
