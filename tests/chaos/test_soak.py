"""A short run of scripts/soak."""

import pathlib
from unittest import mock

import pytest

from faults.schedule import KINDS, Fault, FaultInjector, schedule
from faults.soak import soak


@pytest.mark.soak
@pytest.mark.timeout(240)
def test_random_faults(tmp_path: pathlib.Path) -> None:
    """Under random faults every sum of many small jobs is right, and no resource grows."""
    report = soak(tmp_path, minutes=0.22, seed=4)
    assert report.problems == [], report.table
    assert report.jobs["done"] > 8
    assert report.checked > 400
    assert report.faults["aggregator killed"] > 1
    assert report.faults["connections cut"] > 1


def test_the_seed_fixes_the_schedule() -> None:
    """The same seed gives the same faults. A longer run has the same faults at first, and more after them."""
    assert schedule(1, 60) == schedule(1, 600)[: len(schedule(1, 60))] != schedule(2, 60)


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


def test_a_kind_that_nothing_causes_fails() -> None:
    """It is not counted as done."""
    injector = FaultInjector([mock.Mock(), mock.Mock()], [mock.Mock()], [mock.Mock(workers=[mock.Mock()])])
    with pytest.raises(AssertionError, match="no code causes the fault 'unknown'"):
        injector.run([Fault(0.0, "unknown", 0, 0.0)], 0.0)
