"""A device in host memory, whose streams do their work late and in any order that streams and events allow.

Its memory is reused as soon as CUDA's caching allocator may reuse it, and then overwritten. So a copy that does not
wait for the right event finds wrong bytes in some order.
"""

import contextlib
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

#: What memory contains after it was freed and reused.
GARBAGE: Final = 0xAB

Bytes = npt.NDArray[np.uint8]


class StandInEvent:
    """A point of a stream."""

    def __init__(self, device: "StandIn") -> None:
        self.reached = False
        self._device = device

    def query(self) -> bool:
        return self.reached

    def synchronize(self) -> None:
        self._device.run_until(lambda: self.reached)


class StandInStream:
    """A queue of work; what waits for an event is in the queue too."""

    def __init__(self, device: "StandIn") -> None:
        self.queue: deque[StandInEvent | Callable[[], None]] = deque()
        self._device = device

    def wait_event(self, event: Any) -> None:
        with self._device.lock:
            self.queue.append(event)

    @property
    def ready(self) -> bool:
        """Whether its next piece of work may be done."""
        return bool(self.queue) and (not isinstance(self.queue[0], StandInEvent) or self.queue[0].reached)

    def step(self) -> None:
        """Does its next piece of work."""
        work = self.queue.popleft()
        if not isinstance(work, StandInEvent):
            work()


class _Block:
    """Memory of the device.

    Attributes:
        content: Its bytes.
        owner: The stream on which it was allocated, and on which its next user works.
        kept: Other streams that have used it.
    """

    def __init__(self, nbytes: int, owner: StandInStream) -> None:
        self.content: Bytes = np.zeros(nbytes, np.uint8)
        self.owner = owner
        self.kept: list[StandInStream] = []


class StandIn:
    """See the module. Thread-safe.

    Args:
        chance: Chooses the order.
        patience: The most pieces of work after which an event must be reached.
    """

    def __init__(self, chance: random.Random, patience: int = 100_000) -> None:
        self.lock = threading.RLock()
        self.freed: list[_Block] = []
        """Memory whose tensor is gone, and which has been overwritten, or will be."""
        self.pinned: dict[int, int] = {}
        self._chance = chance
        self._eagerness = chance.choice([1, 1, 2, 4])
        self._patience = patience
        self._blocks: dict[int, _Block] = {}
        self._streams: list[StandInStream] = []
        self._current = threading.local()
        self._default = self.stream()
        self.down: Any = self.stream()
        self.up: Any = self.stream()

    # What the pipeline needs.

    def current_stream(self) -> Any:
        return getattr(self._current, "stream", self._default)

    @contextlib.contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        previous = self.current_stream()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = previous

    def record(self, stream: Any) -> Any:
        event = StandInEvent(self)

        def reach() -> None:
            event.reached = True

        self.launch(stream, reach)
        return event

    def wait(self, stream: Any, event: Any) -> None:
        stream.wait_event(event)

    def copy(self, stream: Any, target: torch.Tensor, source: torch.Tensor, *, pinned: bool) -> None:
        assert stream is self.current_stream()
        to, what = self._bytes(target), self._bytes(source)

        def copy() -> None:
            to[:] = what

        self.launch(stream, copy)

    def keep(self, tensor: torch.Tensor, stream: Any) -> None:
        with self.lock:
            self._blocks[tensor.data_ptr()].kept.append(stream)

    def pin(self, address: int, size: int) -> bool:
        self.pinned[address] = size
        return True

    def unpin(self, address: int) -> None:
        del self.pinned[address]

    # What a program does.

    def stream(self) -> StandInStream:
        """Makes a stream."""
        stream = StandInStream(self)
        self._streams.append(stream)
        return stream

    def launch(self, stream: StandInStream, kernel: Callable[[], None]) -> None:
        """Queues work."""
        with self.lock:
            stream.queue.append(kernel)
            self.go_on()

    def tensor(self, numel: int, dtype: torch.dtype, owner: StandInStream) -> tuple[torch.Tensor, Bytes]:
        """Allocates memory. When the tensor is gone, work on the owner stream overwrites it.

        Returns:
            The tensor, and its bytes for kernels, which do not keep the tensor.
        """
        block = _Block(numel * dtype.itemsize, owner)
        # The tensor keeps this view of the memory.
        view = np.frombuffer(block.content.data, np.uint8)
        weakref.finalize(view, self._reuse, block).atexit = False
        tensor = torch.frombuffer(view, dtype=dtype)
        self._blocks[tensor.data_ptr()] = block
        return tensor, block.content

    def step(self, count: int = 1) -> bool:
        """Does some pieces of work. Returns False if there was none that could be done."""
        with self.lock:
            for _ in range(count):
                ready = [stream for stream in self._streams if stream.ready]
                if not ready:
                    return False
                self._chance.choice(ready).step()
            return True

    def go_on(self) -> None:
        """Does some work, perhaps none: a lazy device does its work when somebody waits."""
        self.step(self._chance.randrange(self._eagerness))

    def run_until(self, reached: Callable[[], bool]) -> None:
        """Does work until something is reached."""
        with self.lock:
            for _ in range(self._patience):
                if reached():
                    return
                assert self.step(), "no stream can go on, and the event is not reached"
        raise AssertionError("the event is not reached")

    def finish(self) -> None:
        """Does all work."""
        while self.step():
            pass
        assert not any(stream.queue for stream in self._streams)

    def _reuse(self, block: _Block) -> None:
        with self.lock:
            self.freed.append(block)
            for stream in block.kept:
                block.owner.wait_event(self.record(stream))

            def overwrite() -> None:
                block.content[:] = GARBAGE

            self.launch(block.owner, overwrite)

    def _bytes(self, tensor: torch.Tensor) -> Bytes:
        """The bytes of a tensor of the device, without keeping it; or those of one in host memory."""
        block = self._blocks.get(tensor.data_ptr())
        if block is not None:
            return block.content
        return np.asarray(tensor.view(-1).view(torch.uint8).numpy())
