"""What `psum launch` says of workers that fail or never join, and the status that it gives."""

import pathlib
import re
import signal
import sys
import time
from typing import Any

import pytest

from tests.cli.launch.workers import SUM, Launch


def test_a_worker_that_never_joined_is_named(launch: Launch) -> None:
    """It ended successfully, but trained alone. A worker that joined a job of one is not reported."""
    script = f"import os\nif os.environ['PSUM_RANK'] == '0':\n os.environ['PSUM_NUM_WORKERS'] = '1'\n exec('''{SUM}''')"
    done = launch("--workers", "2", python=script)
    assert done.returncode == 0
    assert "worker rank 1 ended without having joined the job" in done.stderr
    assert "from psum.mxnet import mx" in done.stderr
    assert "worker rank 0" not in done.stderr


def test_workers_that_never_joined_are_explained_once(psum: Any, tmp_path: pathlib.Path) -> None:
    """The first is reported at once with an explanation, the others at the end in one line."""
    told = tmp_path / "told"
    script = f"[ $PSUM_RANK = 2 ] || until [ -e '{told}' ]; do sleep 0.05; done"
    process = psum.start("launch", "--workers", "4", "--", "sh", "-c", script)
    first = process.stderr.readline()
    assert first.startswith("psum: worker rank 2 ended without having joined the job: nothing was summed for it")
    told.touch()
    assert process.wait() == 0
    assert process.stderr.read() == "psum: worker ranks 0, 1, 3 also ended without having joined the job\n"


def test_the_first_failing_worker_gives_the_status_and_ends_the_others(launch: Launch) -> None:
    """The last line names it."""
    done = launch("--workers", "3", shell='[ "$PSUM_RANK" != 1 ] || exit 3; sleep 600')
    assert done.returncode == 3
    assert done.stderr == (
        "psum: worker rank 1 ended with status 3; ending the others\n"
        "psum: first failure: rank 1, which ended with status 3\n"
    )


#: One rank fails in mid-training by what is put in here. The others hear of it in the next sum.
FAIL = """
import os, sys, time, numpy as np, psum.client
store = psum.client.connect().store()
for step in range(3):
    store.push_pull('x', np.ones(3))
if store.client.rank == 1:
    {}
try:
    store.push_pull('x', np.ones(3))
except psum.client.PsumError as error:
    {}
"""


@pytest.mark.parametrize(
    ("fails", "others", "status", "verdict"),
    [
        ("raise RuntimeError('no more data')", "raise", 1, "rank 1, RuntimeError: no more data"),
        # It leaves the job in good order, after the others have ended.
        ("store.client.close(); time.sleep(1.5); raise KeyError('x')", "raise", 1, "rank 1, KeyError: 'x'"),
        # Neither the cause nor the others print an error.
        ("store.client.close(); time.sleep(1); sys.exit(5)", "sys.exit(1)", 5, "rank 1, which ended with status 5"),
        # The others print an error that is not psum's.
        (
            "store.client.close(); time.sleep(1); sys.exit(5)",
            "raise ValueError",
            5,
            "rank 1, which ended with status 5",
        ),
        # The cause ended with status 0.
        ("sys.exit()", "sys.exit(6)", 6, r"rank [02], which ended with status 6 after the report: rank 1 \(.*"),
    ],
    ids=["raises", "raises late", "exits late", "others hide it", "ends well"],
)
def test_the_first_cause_is_named_and_not_who_ended_first(
    launch: Launch, fails: str, others: str, status: int, verdict: str
) -> None:
    """The last line, after the output of all others, names the cause. Its status is the launcher's."""
    done = launch("--workers", "3", python=FAIL.format(fails, others))
    assert done.returncode == status, done.stderr
    assert re.fullmatch(f"psum: first failure: {verdict}", done.stderr.splitlines()[-1])


def test_a_worker_that_is_said_to_have_failed_and_does_not_end_is_not_waited_for_long(launch: Launch) -> None:
    """Then the first worker with a report about it is named, with the report."""
    program = FAIL.format("store.client.close(); time.sleep(600)", "raise")
    done = launch("--workers", "2", "--grace", "0.5", python=program)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("psum: first failure: rank 0, WorkerLostError: rank 1 (")


def test_what_to_do_about_mxnet_imported_before_psum(launch: Launch) -> None:
    """On Python 3.12, MXNet itself fails in a line of the user's program."""
    done = launch("--workers", "2", python="raise AttributeError(\"module 'numpy' has no attribute 'bool'.\\nmore\")")
    assert "first failure: rank" in done.stderr
    assert "write `from psum.mxnet import mx`" in done.stderr


def test_a_worker_that_was_killed_gives_the_status_that_a_shell_would(launch: Launch) -> None:
    """The status is 128 plus the number of the signal."""
    done = launch("--workers", "2", shell='[ "$PSUM_RANK" != 0 ] || kill -KILL $$; sleep 600')
    assert done.returncode == 128 + signal.SIGKILL
    assert "worker rank 0 was killed by SIGKILL" in done.stderr


def test_a_job_that_broke_off_in_mid_round_ends_at_once(psum: Any) -> None:
    """The aggregator does not wait for contributions of workers that have ended."""
    program = """
import os, numpy as np, psum.client
store = psum.client.connect().store()
if store.client.rank == 0:
    waiting = store.push_pull_async('x', np.ones(3))
# When this sum is there, rank 0's earlier contribution has arrived too.
store.push_pull('y', np.ones(3))
if store.client.rank == 1:
    os.abort()
waiting.result()
"""
    started = time.monotonic()
    done = psum.run("launch", "--workers", "2", "--grace", "25", "--", sys.executable, "-c", program, PSUM_GRACE="25s")
    assert done.returncode == 128 + signal.SIGABRT
    assert time.monotonic() - started < 15
