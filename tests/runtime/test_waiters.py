"""Waiting without a lock that other threads need."""

import signal
import threading
import time

import pytest

from psum.runtime import Waiters


def test_each_waits_for_its_own() -> None:
    """All waiting threads check again when woken. Those whose predicate is false wait on."""
    waiters = Waiters()
    true: set[int] = set()
    got: list[int] = []

    def wait(number: int) -> None:
        assert waiters.wait_for(lambda: number in true, 20)
        got.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for number, thread in enumerate(threads):
        assert number not in got
        true.add(number)
        waiters.wake()
        thread.join(20)
        assert got[-1] == number
    assert not waiters


def test_it_gives_up_in_time() -> None:
    """It gives up after the timeout, or at once for 0, and is not left in the queue."""
    waiters = Waiters()
    begin = time.monotonic()
    assert not waiters.wait_for(lambda: False, 0)
    assert not waiters.wait_for(lambda: False, 0.05)
    assert 0.05 <= time.monotonic() - begin < 10
    assert waiters.wait_for(lambda: True, 0)
    assert not waiters
    waiters.wake()


def test_no_wake_is_lost() -> None:
    """Two threads that take turns a thousand times never miss a wake."""
    waiters = Waiters()
    turns: list[int] = []

    def play(mine: int) -> None:
        for _ in range(1000):
            assert waiters.wait_for(lambda: len(turns) % 2 == mine, 20)
            turns.append(mine)
            waiters.wake()

    threads = [threading.Thread(target=play, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert turns == [0, 1] * 1000


def test_a_handler_that_raises_ends_the_wait() -> None:
    """The signal handler runs during the wait, and the thread is not left in the queue."""
    waiters = Waiters()

    def interrupt(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.05, signal.pthread_kill, [threading.get_ident(), signal.SIGUSR1])
    timer.start()
    try:
        with pytest.raises(InterruptedError):
            waiters.wait_for(lambda: False)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert not waiters
