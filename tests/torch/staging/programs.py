"""Programs whose tensors go through a pipeline, and threads and sums that go on when the test says so."""

import types
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from psum import client as psum
from psum.torch.staging.pipeline import Pipeline
from psum.torch.staging.request import Request
from tests.torch.staging.stand_in import Bytes, StandIn, StandInEvent, StandInStream


class LateThread:
    """A thread whose work is done when the test says so."""

    def __init__(self) -> None:
        self.work: deque[Callable[[], None]] = deque()

    def do(self, work: Callable[[], None]) -> None:
        self.work.append(work)

    def stop(self) -> None:
        """There is nothing to stop."""


class Sum:
    """An operation of psum that triples a value of this rank, and takes 7 for that of another one.

    Args:
        started: Where it goes when it is started.
        fails: Whether it fails.

    If its value stands in for a lost root's, it leaves that value in the target as the result.
    """

    def __init__(self, started: list["Sum"], *, fails: bool, priority: int = 0) -> None:
        self.priority = priority
        self.key = types.SimpleNamespace(title="key 'w'")
        self.reason: str | None = None
        self.fails = fails
        self._started = started

    def start(
        self, source: Any, target: Any, done: Any, staged: int | None, *, stands_in: bool = False, borrows: bool = False
    ) -> None:
        assert not borrows
        self._source = source
        self._target = target
        self._stands_in = stands_in
        self._value: Any = None if source is None else source.copy()
        self._done = done
        self._started.append(self)

    def abort(self, reason: str) -> None:
        self.reason = reason

    def finish(self) -> None:
        """Delivers the result. The value must not have changed since it was handed over."""
        assert self._source is None or np.array_equal(self._source, self._value)
        if not self.fails and not self._stands_in:
            self._target[:] = 7 if self._value is None else self._value * 3
        self._done(psum.PsumError("lost") if self.fails else None)


def _double(_: object, array: Any) -> None:
    array *= 2


class Program:
    """One tensor from its producer to its consumer.

    Args:
        device: The device.
        stream: The stream of the producer, and of whoever gets the memory next.
        consumer: The stream of the consumer.
        value: The value that the producer writes.
        gives, takes, stands_in: See Request.
        reads: Whether the consumer reads the result.
        doubles: Whether the result is doubled in host memory, as sums of gradients are scaled there.
    """

    def __init__(
        self,
        device: StandIn,
        stream: StandInStream,
        consumer: StandInStream,
        value: Bytes,
        *,
        gives: bool,
        takes: bool,
        reads: bool,
        stands_in: bool = False,
        doubles: bool = False,
    ) -> None:
        self._device, self._stream, self._consumer, self._value = device, stream, consumer, value
        self._gives, self._takes, self._reads = gives, takes, reads
        self._stands_in, self._doubles = stands_in, doubles
        self._fails = False
        self.tensor: torch.Tensor | None
        self.tensor, self._content = device.tensor(len(value), torch.uint8, stream)
        self.ends: list[psum.PsumError | None] = []
        self._event: StandInEvent | None = None
        self.seen: list[Bytes] = []
        self._consumed = False

    def begin(self, pipeline: Pipeline, ticket: Any) -> None:
        """Produces the value late, and begins the transfer."""
        value, content = self._value, self._content
        # Not the ticket: it would keep the tensor, and hide a copy to memory that was freed.
        self._fails = isinstance(ticket, Sum) and ticket.fails

        def produce() -> None:
            content[:] = value

        with self._device.use(self._stream):
            self._device.launch(self._stream, produce)
            assert self.tensor is not None
            request = Request(
                ticket,
                gives=self._gives,
                takes=self._takes,
                as_bytes=False,
                arrived=_double if self._doubles else None,
                stands_in=self._stands_in,
            )
            pipeline.begin(request, self.tensor, self._done)

    @property
    def may_consume(self) -> bool:
        return bool(self.ends) and not self._consumed

    def consume(self) -> None:
        """Reads the result late, unless it is ignored, and drops the tensor."""
        self._consumed = True
        if self._event is not None and self._reads:
            self._consumer.wait_event(self._event)
            content, seen = self._content, self.seen
            self._device.launch(self._consumer, lambda: seen.append(content.copy()))
            assert self.tensor is not None
            self._device.keep(self.tensor, self._consumer)
        self.tensor = None

    def check(self) -> None:
        # Nothing but the operation's own failure may end a transfer with an error. Else there were nothing to compare.
        assert [error and str(error) for error in self.ends] == ["lost" if self._fails else None]
        if self.ends == [None] and self._reads:
            assert np.array_equal(self.seen[0], self._expected())

    def _expected(self) -> Bytes:
        if not self._takes or self._stands_in:
            return self._value
        result = np.full_like(self._value, 7)
        if self._gives:
            np.multiply(self._value, 3, out=result)
        if self._doubles:
            result *= 2
        return result

    def _done(self, error: psum.PsumError | None) -> None:
        self.ends.append(error)
        if error is None:
            # As a torch.futures.Future does.
            self._event = self._device.record(self._device.current_stream())


def let_one_go_on(thread: LateThread) -> None:
    """Lets the thread do the work that it was given first."""
    thread.work.popleft()()
