"""The fault file has the first failure that an aggregator reports."""

import pathlib

import pytest

from psum.client.observe.fault_report import FaultReport, write_report
from psum.wire.errors import AbortedError, InternalError, WorkerLostError


def test_the_first_failure_is_kept(tmp_path: pathlib.Path) -> None:
    """The file has the kind, text and ranks of the first failure, and not the later ones."""
    file = tmp_path / "fault"
    assert FaultReport.read(file) is None
    write_report(WorkerLostError("rank 1 is gone", ranks=[1]), str(file))
    write_report(AbortedError("no more", ranks=[0]), str(file))
    assert FaultReport.read(file) == FaultReport("worker_lost", "rank 1 is gone", (1,))


def test_a_file_that_cannot_be_written_makes_no_difference(tmp_path: pathlib.Path) -> None:
    """A file that cannot be written does not disturb the worker."""
    write_report(InternalError("failed"), str(tmp_path / "no" / "where"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "x", "text": "y", "ranks": 3}'])
def test_what_is_no_report_is_none(tmp_path: pathlib.Path, text: str) -> None:
    """A missing or broken file counts as no failure, for example if its writer was killed."""
    file = tmp_path / "fault"
    file.write_text(text)
    assert FaultReport.read(file) is None
