"""Priorities on the wire, and asynchronous calls: the order of contributions, and when calls return."""

import threading
from typing import Any

import numpy as np
import pytest

from psum.aggregator.core.job_rounds import JobRounds
from psum.wire import BATCH_BYTES

ELEMENTS = BATCH_BYTES // 4


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of contributions in the order in which the aggregator receives them."""
    keys: list[str] = []
    contribute = JobRounds.contribute

    def record(rounds: JobRounds, rank: int, entry: Any, *rest: Any) -> Any:
        keys.append(rounds.keys[entry.id].name)
        return contribute(rounds, rank, entry, *rest)

    monkeypatch.setattr(JobRounds, "contribute", record)
    return keys


def test_a_late_urgent_key_overtakes_all_that_wait_for_credit(fleet: Any, received: list[str]) -> None:
    """With credit for one shard, an urgent shard waits only for the shard under way."""
    issued = threading.Event()
    with fleet.worker(0, 1, credit_bytes=1, partition_bytes=BATCH_BYTES) as client:
        store = client.store()
        # A fast aggregator must not answer before all operations are issued.
        fleet.thread.call(lambda: issued.wait(30))
        futures = [
            store.push_pull_async(f"layer {i}", np.ones(ELEMENTS, np.float32), priority=-i) for i in range(40, 0, -1)
        ]
        futures.append(store.push_pull_async("urgent", np.ones(ELEMENTS, np.float32), priority=1))
        issued.set()
        for future in futures:
            future.result(30)
    assert len(received) == 41
    place = received.index("urgent")
    assert place <= 1
    waited = [name for name in received[place + 1 :]]
    assert waited == sorted(waited, key=lambda name: int(name.split()[1]))


def test_a_push_pull_returns_before_its_sum_is_there(fleet: Any) -> None:
    """While the other rank has not contributed, the future is not done and the caller continues."""
    with fleet.worker(0, 2) as zero, fleet.worker(1, 2) as one:
        value = np.ones(3, np.float32)
        future = zero.store().push_pull_async("w", value)
        assert not future.done()
        one.store().push_pull("w", np.ones(3, np.float32))
        future.result(10)
        assert value.tolist() == [2, 2, 2]
