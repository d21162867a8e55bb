"""Handlers of signals that run in the main thread while the client waits there."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from tests.signals import signalled


def test_handlers_run_while_sums_are_waited_for(fleet: Any) -> None:
    """Handlers run during push_pull, broadcast, a future and drain. Each handler makes the other rank contribute."""
    one, two = (fleet.worker(rank, 2) for rank in range(2))
    here, there = one.store(), two.store()
    array, other = np.ones(3, np.float32), np.ones(3, np.float32)
    waits: dict[str, Callable[[], Any]] = {
        "push_pull": lambda: here.push_pull("w", array),
        "future": lambda: here.push_pull_async("w", array).result(),
        "drain": lambda: (here.push_pull_async("w", array), one.drain()),
    }
    contributed: list[Future[None]] = []
    with one, two:
        for name, wait in waits.items():
            array[:] = other[:] = 1
            with signalled(lambda: contributed.append(there.push_pull_async("w", other))):
                wait()
            assert array.tolist() == [2, 2, 2], name
            contributed.pop().result(timeout=30)
        with signalled(lambda: here.broadcast_async("b", np.full(3, 5, np.float32))):
            there.broadcast("b", other)
        assert other.tolist() == [5, 5, 5]


def test_a_handler_may_close_a_client_that_is_being_closed(fleet: Any) -> None:
    """A handler's close does not wait for the close that it has interrupted, which goes on afterwards."""
    one, two = (fleet.worker(rank, 2) for rank in range(2))
    future: Future[None] = one.store().push_pull_async("w", np.ones(3))
    closed: list[bool] = []

    def close() -> None:
        one.close()
        closed.append(one.closed)

    with two:
        with signalled(close):
            one.close(timeout=0.5)
        assert closed == [False]
        assert one.closed
        with pytest.raises(psum.ClosedError):
            future.result(timeout=5)


def test_a_handler_may_end_the_wait_for_an_aggregator() -> None:
    """`connect` raises what the handler raises, and leaves nothing behind."""

    def leave() -> None:
        raise SystemExit(3)

    settings = psum.Settings(aggregators=("127.0.0.1:1",), num_workers=2, connect_timeout=30.0)
    with signalled(leave), pytest.raises(SystemExit):
        psum.connect(settings)
