"""A worker's fault file, with real aggregators."""

import pathlib
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.client.observe.fault_report import FaultReport


def test_a_worker_that_others_have_failed_reports_whom(fleet: Any, tmp_path: pathlib.Path) -> None:
    """Rank 1 leaves while rank 0 waits for it. Only rank 0 gets a fault, and reports it."""
    files = [tmp_path / str(rank) for rank in range(2)]
    zero, one = (fleet.worker(rank, 2, fault_file=str(files[rank])) for rank in range(2))
    waiting = zero.store().push_pull_async("w", np.ones(3))
    one.close()
    with pytest.raises(psum.WorkerLostError) as caught:
        waiting.result(20)
    zero.close()
    assert FaultReport.read(files[0]) == FaultReport("worker_lost", str(caught.value), (1,))
    assert not files[1].exists()


def test_a_worker_that_is_refused_reports_why(fleet: Any, tmp_path: pathlib.Path) -> None:
    """A worker that is refused reports the fault, although it never joined."""
    file = tmp_path / "fault"
    with fleet.worker(0, 2), pytest.raises(psum.DisagreementError):
        fleet.worker(1, 3, fault_file=str(file))
    report = FaultReport.read(file)
    assert report is not None
    assert (report.kind, report.ranks) == ("disagreement", (0, 1))
