"""What an aggregator that is about to end still sends."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from tests.integration.credential_files import Files
from tests.polling import PATIENCE_SECONDS, wait_until

#: More than the kernel takes for a worker that does not read.
ELEMENTS = 8 << 20


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_late_worker_receives_the_last_sums(make_fleet: Callable[..., Any], files: Files, encrypted: bool) -> None:
    """A worker reads nothing while the open round ends. The aggregator waits for it, though nothing is in its queue."""
    of_fleet: dict[str, Any] = {}
    settings: dict[str, Any] = {"plane": "direct", "partition_bytes": 64 << 20, "credit_bytes": 64 << 20}
    if encrypted:
        of_fleet = files.certificate("aggregator", "127.0.0.1")
        settings["tls_ca"] = files.ca
    fleet = make_fleet(1, **of_fleet)
    late, other = (fleet.worker(rank, 2, **settings) for rank in range(2))
    values = [np.ones(ELEMENTS, np.float32) for _ in range(2)]
    waiting = late.store().push_pull_async("w", values[0])
    asking = psum.Settings(tls_ca=settings.get("tls_ca", ""))
    wait_until(lambda: any(job.rounds for job in psum.fetch_status(fleet.addresses[0], settings=asking).jobs))
    read = threading.Event()
    thread, server = late._loop.thread, fleet.servers.pop()
    assert thread is not None
    thread.call(lambda: read.wait(PATIENCE_SECONDS))
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        for client in (late, other):
            stack.callback(client.close, timeout=0.1)
        stopping = pool.submit(fleet.thread.run, server.stop(PATIENCE_SECONDS), PATIENCE_SECONDS)
        try:
            wait_until(lambda: server._service.draining)
            other.store().push_pull("w", values[1])
            with contextlib.suppress(TimeoutError):
                # If it did not wait, it would end within this time.
                stopping.result(0.5)
        finally:
            read.set()
        waiting.result(PATIENCE_SECONDS)
        stopping.result(PATIENCE_SECONDS)
    assert [value.sum() for value in values] == [2 * ELEMENTS] * 2
