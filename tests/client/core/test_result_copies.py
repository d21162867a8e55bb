"""Results are copied past the caches where that is faster, and only when their targets are in no cache."""

from collections.abc import Callable

import pytest

from psum.client.core.result_copies import ResultCopies

SIZE = 1 << 20


class Machine:
    """Copies with two speeds, and counts the streaming copies."""

    def __init__(self, usual: float, streaming: float) -> None:
        self.usual = usual
        self.streaming = streaming
        self.streamed = 0
        self._streamed_now = False
        self._now = 0.0
        self._asked = 0

    def stream(self, target: memoryview, result: memoryview) -> None:
        """A streaming copy."""
        target[:] = result
        self.streamed += 1
        self._streamed_now = True

    def clock(self) -> float:
        """The time, which is asked for before and after each measured copy."""
        self._asked += 1
        if self._asked % 2 == 0:
            self._now += self.streaming if self._streamed_now else self.usual
        self._streamed_now = False
        return self._now


def copy_all(copies: ResultCopies, times: int, *, targets: int = 64, size: int = SIZE) -> None:
    """Copies results to some targets in turns, each time the right bytes."""
    memory = [memoryview(bytearray(size)) for _ in range(min(targets, 4))]
    last = [0] * targets
    for number in range(times):
        value = bytes([number % 251]) * size
        which = number % targets
        target = memory[which % len(memory)]
        last[which] = copies.copy(target, memoryview(value), last[which])
        assert target[0] == target[-1] == number % 251


@pytest.mark.parametrize(("streaming", "uses_it"), [(0.5, True), (0.9, True), (0.97, False), (1.5, False)])
def test_the_faster_way_is_found_from_the_copies_themselves(streaming: float, uses_it: bool) -> None:
    """Streaming copies must be clearly faster. A trial compares 12 of each kind."""
    machine = Machine(1.0, streaming)
    copies = ResultCopies(machine.stream, machine.clock)
    copy_all(copies, 24)
    assert machine.streamed == 12
    copy_all(copies, 100)
    assert machine.streamed == 12 + (100 if uses_it else 0)


def test_a_machine_that_changes_is_tried_again() -> None:
    """As when other programs begin to use its memory."""
    machine = Machine(1.0, 0.5)
    copies = ResultCopies(machine.stream, machine.clock)
    copy_all(copies, 24 + 2048)
    assert machine.streamed == 12 + 2048
    machine.streaming = 2.0
    copy_all(copies, 24 + 100)
    assert machine.streamed == 12 + 2048 + 12


@pytest.mark.parametrize(
    ("targets", "size"),
    [
        pytest.param(31, SIZE, id="targets that fit in a cache together"),
        pytest.param(2000, 128 << 10, id="small results"),
    ],
)
def test_results_that_stay_in_a_cache_are_copied_as_usual(targets: int, size: int) -> None:
    """Whoever reads them next finds them there. Only the first copy to each target may be a streaming one."""
    machine = Machine(1.0, 0.5)
    copies = ResultCopies(machine.stream, machine.clock)
    copy_all(copies, targets, targets=targets, size=size)
    before = machine.streamed
    memory, last = memoryview(bytearray(size)), 0
    for _ in range(40):
        last = copies.copy(memory, memoryview(bytes(size)), last)
    assert machine.streamed <= before + 1


def test_without_a_streaming_copy_every_copy_is_a_usual_one() -> None:
    """And nothing is measured."""

    def no_clock() -> float:
        raise AssertionError("measured")

    clock: Callable[[], float] = no_clock
    copy_all(ResultCopies(None, clock), 100)
