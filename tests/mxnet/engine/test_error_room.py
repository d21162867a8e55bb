"""Room in MXNet's list of errors: the list stays where it is while operations fail."""

import random
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from psum.mxnet.compat import MXNetError, mx
from psum.mxnet.engine import interface, operations
from psum.mxnet.engine.error_room import ErrorRoom


class Vector:
    """The memory of a std::vector."""

    def __init__(self) -> None:
        self.size = self.capacity = 0

    def append(self) -> None:
        if self.size == self.capacity:
            self.capacity = max(1, 2 * self.capacity)
        self.size += 1

    def clear(self) -> None:
        self.size = 0


@pytest.mark.parametrize("seed", range(20))
def test_the_list_does_not_move_when_operations_fail(seed: int) -> None:
    """However many operations were under way, failed before, and whenever the program emptied the list."""
    generator = random.Random(seed)
    room, errors = ErrorRoom(), Vector()

    def fail(count: int) -> None:
        for _ in range(count):
            room.add()
            errors.append()

    for _ in range(generator.randrange(10)):
        # Not psum's.
        errors.append()
    for _ in range(50):
        pushed = generator.choice((1, 30, 500, 3000))
        for under_way in range(1, pushed + 1):
            if room.lacks(under_way):
                room.grow(under_way, fail)
        before = errors.capacity
        fail(generator.choice((0, 1, pushed)))
        assert errors.capacity == before
        if generator.random() < 0.5:
            errors.clear()


def test_it_grows_once_for_a_usual_network() -> None:
    """Steps without errors cost no more after the first push."""
    room = ErrorRoom()
    grown: list[int] = []

    def fail(count: int) -> None:
        grown.append(count)
        for _ in range(count):
            room.add()

    for _ in range(10):
        for under_way in range(1, 400):
            if room.lacks(under_way):
                room.grow(under_way, fail)
    assert len(grown) == 1


def test_an_interrupted_growth_leaves_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler of a signal raises while the list grows. No wait of the program gets an error of that."""
    push, main = operations._push, threading.get_ident()
    pushed: list[int] = []

    def push_and_interrupt(*arguments: Any, **named: Any) -> None:
        pushed.append(threading.get_ident())
        if len(pushed) == 5:
            signal.pthread_kill(main, signal.SIGUSR1)
        push(*arguments, **named)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(operations, "_push", push_and_interrupt)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            operations._fail(1000)
    finally:
        signal.signal(signal.SIGUSR1, before)
    mx.nd.waitall()
    assert len(pushed) == 1001


def test_one_thread_runs_all_operations_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they take five times as long, because threads take turns at the interpreter for each of them."""
    threads: list[int] = []
    begin = operations.EngineOperation._begin

    def record(operation: operations.EngineOperation, *arguments: int) -> None:
        threads.append(threading.get_ident())
        begin(operation, *arguments)

    monkeypatch.setattr(operations.EngineOperation, "_begin", record)
    operations._fail(10)
    assert len(threads) == 11
    assert len({*threads}) == 1
    assert threads[0] != threading.get_ident()


def test_a_growth_that_mxnet_refuses_is_an_error_of_the_push(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program hears of it where it pushes. It is not left in MXNet."""

    def refuse(*arguments: Any, **named: Any) -> None:
        if named["at_once"]:
            raise MXNetError("refused")
        push(*arguments, **named)

    push = interface.push
    monkeypatch.setattr(interface, "push", refuse)
    with pytest.raises(MXNetError, match="refused"):
        operations._fail(10)
    mx.nd.waitall()


@pytest.mark.skipif(mx.__version__ != "1.9.1", reason="the program knows where MXNet 1.9.1 has its list")
def test_mxnet_keeps_its_list_in_place(run_alone: Callable[..., Any]) -> None:
    """MXNet's own list, when hundreds of operations fail at once. The program's waits get the errors of these only."""
    assert run_alone("errors.py").wait().check().splitlines() == [
        "grown while operations failed: False",
        "errors: 300",
        "waits for everything: ['MXNetError: a sum failed', 'nothing']",
    ]
