"""The futures of operations behave like those of concurrent.futures."""

import asyncio
import concurrent.futures
import threading
from concurrent.futures import Future

import pytest

from psum.client.core.contribution import Contribution
from psum.client.future import Outcome
from psum.wire.errors import ClosedError
from tests.signals import signalled


def test_it_has_what_a_future_of_this_python_has() -> None:
    """A future has every attribute that Future.__init__ sets, on every version of Python."""
    assert all(hasattr(Outcome(), name) for name in vars(Future()))


def test_whoever_waits_hears_of_the_right_end_only() -> None:
    """Other futures that end meanwhile neither end a wait nor make it time out."""
    mine, others = Outcome(), [Outcome() for _ in range(100)]
    got = threading.Event()

    def wait() -> None:
        mine.result(timeout=10)
        got.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    for other in others:
        other(None)
    assert not got.is_set()
    mine(None)
    waiting.join(10)
    assert got.is_set()


def test_an_error_is_raised_and_can_be_looked_at() -> None:
    """`result` raises the error and `exception` returns it, with a timeout and without."""
    future = Outcome()
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0)
    assert future.running()
    assert not future.cancel()
    error = ClosedError("over")
    future(error)
    assert future.done()
    assert future.exception() is error
    with pytest.raises(ClosedError, match="over"):
        future.result()


def test_the_tools_for_futures_take_it() -> None:
    """concurrent.futures.wait, as_completed and callbacks work, with done futures and others."""
    done, later = Outcome(), Outcome()
    done(None)
    finished, running = concurrent.futures.wait([done, later], timeout=0.01)
    assert (finished, running) == ({done}, {later})
    told: list[Future[None]] = []
    later.add_done_callback(told.append)
    threading.Timer(0.01, later, [None]).start()
    both: list[Future[None]] = [done, later]
    assert set(concurrent.futures.as_completed(both, timeout=10)) == set(both)
    assert told == [later]


async def test_asyncio_waits_for_it() -> None:
    """asyncio.wrap_future works."""
    future = Outcome()
    threading.Timer(0.01, future, [None]).start()
    async with asyncio.timeout(10):
        await asyncio.wrap_future(future)


@pytest.mark.parametrize("timeout", [None, 20.0])
def test_a_handler_runs_while_it_is_waited_for(timeout: float | None) -> None:
    """A signal's handler runs at once during a wait. It may wait for another future, and may raise, which ends the
    wait."""
    future, inner = Outcome(), Outcome()

    def handle() -> None:
        threading.Timer(0.01, inner, [None]).start()
        inner.result(timeout)
        future(None)

    with signalled(handle):
        future.result(timeout)
    assert inner.done()

    def interrupt() -> None:
        raise InterruptedError

    never = Outcome()
    with signalled(interrupt), pytest.raises(InterruptedError):
        never.result(timeout)
    with signalled(interrupt), pytest.raises(InterruptedError):
        never.exception(timeout)
    never(None)


def test_a_future_of_an_elastic_job_has_counts_if_it_succeeded() -> None:
    """They are found out when somebody asks, and not before the operation has ended."""
    asked = 0

    def parts() -> tuple[Contribution, ...]:
        nonlocal asked
        asked += 1
        return (Contribution(0, 4, 3),)

    succeeded, failed = Outcome(), Outcome()
    for future in (succeeded, failed):
        future.take_counts(parts)
        assert future.contributors == ()
    succeeded(None)
    failed(ClosedError("the client was closed"))
    assert asked == 0
    assert list(succeeded.contributors) == [Contribution(0, 4, 3)]
    assert failed.contributors == ()
    assert Outcome().contributors == ()
