"""A short run of scripts/soak."""

import os
import pathlib
import threading
import time
from collections import Counter
from itertools import count, islice
from unittest import mock

import pytest

from faults.job_runner import JobRunner
from faults.sampling import Sampler
from faults.schedule import KINDS, Fault, FaultInjector, schedule
from faults.soak import Goal, soak


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_random_faults(tmp_path: pathlib.Path) -> None:
    """Under random faults every sum of many small jobs is right, and no resource grows.

    On a busy machine it takes longer until as much was done.
    """
    goal = Goal(jobs=9, sums=401, faults={"aggregator killed": 2, "connections cut": 2})
    report = soak(tmp_path, minutes=0.22, seed=4, goal=goal)
    assert report.problems == [], report.table


def test_a_goal_that_is_not_reached_is_a_problem() -> None:
    """Each part of it that is missing is named. Jobs that ended in another way do not count."""
    goal = Goal(jobs=2, sums=10, faults={"worker killed": 1, "connections cut": 3})
    faults = Counter({"worker killed": 1, "connections cut": 2})
    jobs = Counter({"done": 1, "disagreed": 5})
    assert goal.missing(jobs, 10, faults) == ["jobs done: 1 of 2", "connections cut: 2 of 3"]
    assert goal.missing(jobs + Counter(done=1), 11, faults + Counter({"connections cut": 1})) == []


@pytest.mark.parametrize(
    ("mib", "found"),
    [
        ([60, 90, 70, 80, 70, 72], []),
        ([60, 90, 70, 80, 70, 76], ["a: grew from 60 to 76 MiB when idle"]),
        ([60, 60, 60, 60, 80, 78, 60], ["a: grew from 60 to 78 MiB under load"]),
    ],
)
def test_growth_is_told_from_noise(mib: list[int], found: list[str]) -> None:
    """When idle it is that since the first sample, under load that from the second third to the last one."""
    sampler = Sampler("a", os.getpid())
    sampler.resident, sampler.files, sampler.threads = [each << 20 for each in mib], [9, 9], [2, 2]
    assert sampler.problems == found
    sampler = Sampler("a", os.getpid(), 100 << 20)
    sampler.resident, sampler.files, sampler.threads = [each << 20 for each in mib], [9, 9], [2, 2]
    assert sampler.problems == [text for text in found if "under load" in text]


def test_the_seed_fixes_the_schedule() -> None:
    """The same seed gives the same faults, and another one gives others."""
    first, again, other = (list(islice(schedule(seed), 50)) for seed in (1, 1, 2))
    assert first == again != other


def test_no_fault_is_injected_when_the_run_is_over() -> None:
    """Also if there are more in the schedule, which has no end."""
    injector = FaultInjector([mock.Mock(), mock.Mock()], [mock.Mock()], [mock.Mock()])
    cuts = (Fault(0.0, "connections cut", 0, 0.0) for _ in count())
    injector.run(cuts, 0.0, lambda: injector.done["connections cut"] == 3)
    assert injector.done.total() == 3


@pytest.mark.parametrize(
    ("relay", "event", "killed"),
    [
        (None, "working", True),
        (0, "working", True),
        (1, "working", False),
        (1, "summed", True),
        (0, "worked", False),
        (None, "", False),
    ],
)
def test_a_worker_is_killed_only_if_its_end_will_be_noticed(
    tmp_path: pathlib.Path, relay: int | None, event: str, killed: bool
) -> None:
    """Aggregator 0 outlives the run. Of a worker behind another relay it may know nothing before the first sum."""
    runner = JobRunner(tmp_path, "runner", 1, 0, ["a:1", "b:1"], worker_timeout=8.0)
    workers = [mock.Mock(last=event), mock.Mock(last=event)]
    runner.workers = [*workers]
    runner.spec = mock.Mock(relay_of=lambda rank: (2, relay)[rank])
    assert runner.kill(1) is killed
    assert workers[1].signal.called is killed
    # One of a job is enough.
    assert not runner.kill(1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_fault_is_caused(kind: str) -> None:
    """The injector does something to a process or a proxy for each kind in the table."""
    aggregator, proxy, runner = mock.Mock(), mock.Mock(data_port="open", delay_seconds=0.0), mock.Mock()
    aggregator.end.return_value = 0
    worker = mock.Mock()
    runner.workers = [worker]
    runner.kill.return_value = True
    injector = FaultInjector([mock.Mock(), aggregator], [proxy], [runner])
    injector.run([Fault(0.0, kind, 0, 0.0)], 0.0)
    assert injector.done[kind] == 1
    calls = [*aggregator.method_calls, *proxy.method_calls, *runner.method_calls, *worker.method_calls]
    assert calls or kind == "network slow"


def test_a_fault_lasts_no_longer_because_of_the_next_one() -> None:
    """A silent network flows again while an aggregator takes long to start. Workers would be lost otherwise."""
    flows = threading.Event()
    aggregator, proxy = mock.Mock(), mock.Mock()
    proxy.flow.side_effect = flows.set
    flowed: list[bool] = []
    aggregator.start.side_effect = lambda: flowed.append(flows.wait(10))
    injector = FaultInjector([mock.Mock(), aggregator], [proxy], [mock.Mock()])
    faults = [Fault(0.0, "network silent", 0, 0.1), Fault(0.0, "aggregator killed", 0, 0.0)]
    injector.run(faults, time.monotonic())
    assert flowed == [True]


def test_faults_that_come_late_are_as_far_apart_as_others() -> None:
    """Otherwise a slow machine would get them one after the other, and no time to recover between them."""
    moments: list[float] = []
    proxy = mock.Mock()
    proxy.cut.side_effect = lambda: moments.append(time.monotonic())
    injector = FaultInjector([mock.Mock(), mock.Mock()], [proxy], [mock.Mock()])
    injector.run([Fault(at, "connections cut", 0, 0.0) for at in (0.0, 0.3)], time.monotonic() - 10)
    first, second = moments
    assert second - first > 0.29


def test_a_kind_that_nothing_causes_fails() -> None:
    """It is not counted as done."""
    injector = FaultInjector([mock.Mock(), mock.Mock()], [mock.Mock()], [mock.Mock(workers=[mock.Mock()])])
    with pytest.raises(AssertionError, match="no code causes the fault 'unknown'"):
        injector.run([Fault(0.0, "unknown", 0, 0.0)], 0.0)
