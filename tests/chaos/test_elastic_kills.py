"""Workers of an elastic training are killed at random moments; the others go on. See scripts/chaos workers."""

import pathlib

from faults import worker_kills


def test_the_others_go_on_without_workers_that_are_killed(tmp_path: pathlib.Path) -> None:
    """Two of four are killed and not replaced. The others hold the same bits after each step, and lose 1 s for each."""
    report = worker_kills.kill_workers(tmp_path, 2, seed=1, plane="inline", replace=False, aggregator_kills=0)
    assert report["problems"] == []
    assert report["kills of workers"] == 2
    # A connection that was closed counts for 1 s; the rest is for a busy machine.
    assert report["s lost per kill, worst"] < 6


def test_workers_that_are_killed_are_replaced(tmp_path: pathlib.Path) -> None:
    """Also while an aggregator is started again. With the next loss it begins again, which costs no member its place.

    After each step all members hold the same bits, and the loss ends as in a training with the members of each step.
    """
    report = worker_kills.kill_workers(tmp_path, 3, seed=2, plane="shm")
    assert report["problems"] == []
    assert (report["kills of workers"], report["kills of aggregators"]) == (3, 1)
    assert report["compared hashes"] > report["steps"] > 20


def test_workers_behind_relays_are_killed_and_replaced(tmp_path: pathlib.Path) -> None:
    """Also both of a host, while a newcomer waits at their relay, and an aggregator that is started again."""
    report = worker_kills.kill_workers(tmp_path, 4, seed=11, plane=worker_kills.RELAYS)
    assert report["problems"] == []
    assert report["kills of workers"] == 4
    assert report["compared hashes"] > report["steps"] > 20
