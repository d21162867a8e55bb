"""With few file descriptors, workers use fewer connections, and the sums are the same."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.aggregator.service.descriptor_budget import DescriptorBudget
from tests.polling import wait_until


def sums(client: psum.Client) -> tuple[tuple[str, ...], float]:
    """Return the planes, and the sum of all ranks counted from 1."""
    value = np.full(300_000, client.rank + 1, np.float32)
    client.store().push_pull("w", value)
    assert (value == value[0]).all()
    return client.planes, float(value[0])


def ledger(fleet: Any) -> DescriptorBudget:
    """That of the first aggregator."""
    found: DescriptorBudget = fleet.servers[0]._service.descriptors
    return found


def leave(fleet: Any, count: int) -> None:
    """Leave the aggregator so many descriptors."""
    fleet.thread.call(lambda: ledger(fleet).take(ledger(fleet).left - count))
    wait_until(lambda: ledger(fleet).left == count)


def test_an_aggregator_with_few_gives_every_rank_a_stream(
    make_fleet: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """All workers use messages, instead of some using everything. Both sides log the reason once for each worker."""
    fleet = make_fleet(1)
    leave(fleet, 3)
    assert fleet.on_every_rank(3, sums) == [(("inline",), 6.0)] * 3
    for side in ("psum.aggregator", "psum.client"):
        told = [record.getMessage() for record in caplog.records if record.name.startswith(side)]
        assert (
            len([text for text in told if "has only its stream" in text and "limit of file descriptors" in text]) == 3
        )


def test_a_worker_too_many_hears_so_at_once_and_so_do_its_peers(
    make_fleet: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The error names the limit, long before any timeout."""
    fleet = make_fleet(1)
    leave(fleet, 2)
    peers = [fleet.worker(rank, 3) for rank in range(2)]
    with pytest.raises(psum.ExhaustedError, match=r"rank 2 .* was refused, 2 workers are connected.*ulimit -n"):
        fleet.worker(2, 3)
    wait_until(lambda: caplog.text.count("rank 2 of job 'default'") == 3)
    for peer in peers:
        peer.close()
    wait_until(lambda: ledger(fleet).left == 2)
    assert fleet.on_every_rank(2, sums, job="another") == [(("inline",), 3.0)] * 2


@pytest.mark.parametrize(("staging", "each"), [(False, 3), (True, 4)])
def test_what_workers_had_is_free_again(make_fleet: Callable[..., Any], staging: bool, each: int) -> None:
    """The numbers are exact: stream, data connection, shared memory, and two for the job's sums."""
    fleet = make_fleet(1)
    before = ledger(fleet).left
    workers = [fleet.worker(rank, 2, staging=staging) for rank in range(2)]
    assert [worker.planes for worker in workers] == [("shm",)] * 2
    assert before - ledger(fleet).left == 2 * each + 2
    fleet.cut()
    wait_until(lambda: all(worker.statistics().reconnects for worker in workers))
    wait_until(lambda: before - ledger(fleet).left == 2 * each + 2)
    for worker in workers:
        worker.close()
    wait_until(lambda: ledger(fleet).left == before)


_WORKER = """
import sys
import numpy as np
from psum import client as psum
from tests.scarcity import descriptors_left

settings = psum.Settings.from_environment()
with descriptors_left(int(sys.argv[1])):
    with psum.connect(settings) as client:
        value = np.ones(3_000_000, np.float32)
        client.store().push_pull("w", value)
        assert (value == 1).all()
        print(*client.planes, client.place_of(client.empty(100_000)) is not None)
"""


@pytest.mark.parametrize(
    ("left", "plane"), [(21, "inline"), (23, "inline"), (24, "direct"), (32, "direct"), (33, "shm"), (35, "shm")]
)
def test_a_worker_with_few_does_with_what_there_is(make_fleet: Callable[..., Any], left: int, plane: str) -> None:
    """If they are not enough for the best plane to all aggregators, it uses another plane and logs the reason.

    Arrays that need no copy take two more. Without those, arrays are copied.
    """
    fleet = make_fleet(3)
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, str(left)],
        cwd=pathlib.Path(__file__).parents[2],
        env=os.environ
        | {
            "PSUM_AGGREGATORS": ",".join(fleet.addresses),
            "PSUM_NUM_WORKERS": "1",
            "PYTHONPATH": ".",
            "PSUM_CONNECT_TIMEOUT": "20s",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [*[plane] * 3, str(left == 35)]
    if plane == "shm":
        assert done.stderr == ""
    else:
        [warning] = done.stderr.splitlines()
        assert f"rank 0 uses plane {plane}, which is slower: plane auto would need 33 file descriptors" in warning
        assert "its limit of file descriptors); raise it with ulimit -n" in warning
