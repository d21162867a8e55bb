"""The thread pool runs the most urgent task first."""

import asyncio
import threading
from functools import partial

import pytest

from psum.aggregator.sums.pool import PriorityPool


async def test_the_most_urgent_waiting_task_runs_next() -> None:
    """While the only thread is busy, tasks queue by priority, and equal ones by age."""
    pool = PriorityPool(1)
    release = threading.Event()
    order: list[str] = []
    finished: asyncio.Queue[BaseException | None] = asyncio.Queue()
    pool.submit(0, lambda: (release.wait(10), None)[1], finished.put_nowait)
    # Tasks that are submitted in one turn are handed out together.
    await asyncio.sleep(0)
    for name, priority in (("late", -5), ("first", 3), ("second", 1), ("third", 1)):
        pool.submit(priority, partial(order.append, name), finished.put_nowait)
    assert pool.waiting == 4
    release.set()
    async with asyncio.timeout(10):
        assert [await finished.get() for _ in range(5)] == [None] * 5
    assert order == ["first", "second", "third", "late"]
    pool.close()


async def test_a_failing_task_reports_its_exception() -> None:
    """A task's exception reaches its callback on the event loop, and the thread goes on."""
    pool = PriorityPool(1)
    results: asyncio.Queue[BaseException | None] = asyncio.Queue()

    def fail() -> None:
        raise ValueError("no sum")

    pool.submit(0, fail, results.put_nowait)
    pool.submit(0, lambda: None, results.put_nowait)
    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="no sum"):
            raise await results.get() or AssertionError
        assert await results.get() is None
    pool.close()
