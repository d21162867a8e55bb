"""A worker notices that its process did not run for a while."""

import asyncio

from psum.client.transport.pauses import Pauses


async def test_a_pause_is_noticed_at_once() -> None:
    """Whoever asks hears of it before anything else has run, and from then on."""
    times = iter([100.0, 100.0, 100.9, 101.8, 102.9, 103.0])
    noting = Pauses(1.0, lambda: next(times))
    assert [noting.noticed for _ in range(5)] == [False, False, False, True, True]
    noting.stop()


async def test_a_pause_is_remembered() -> None:
    """If the time was noted after the pause, it is known later too."""
    now = 100.0
    noted = asyncio.Event()

    def clock() -> float:
        noted.set()
        return now

    noting = Pauses(0.01, clock)
    noted.clear()
    now += 1.0
    await asyncio.wait_for(noted.wait(), 10)
    assert noting.noticed
    noting.stop()
