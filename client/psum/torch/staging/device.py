"""What the pipeline needs of a device: streams, events and copies, as CUDA has them.

A stream does the work that is queued on it in order. Streams run beside each other. An event marks a point of a stream;
other streams and host threads can wait for it.
"""

from contextlib import AbstractContextManager
from typing import Protocol

import torch


class Event(Protocol):
    """A point of a stream."""

    def query(self) -> bool:
        """Returns whether the stream has reached the point.

        Raises:
            RuntimeError: The device has failed.
        """

    def synchronize(self) -> None:
        """Blocks the calling thread until the stream has reached the point.

        Raises:
            RuntimeError: The device has failed.
        """


class Stream(Protocol):
    """A queue of work."""


class Device(Protocol):
    """One device. All methods but `pin` and `unpin` return at once, and may be called from any thread.

    Attributes:
        down: A stream for copies from the device.
        up: A stream for copies to the device.
    """

    @property
    def down(self) -> Stream: ...

    @property
    def up(self) -> Stream: ...

    def current_stream(self) -> Stream:
        """Returns the stream on which the calling thread queues its work on this device."""

    def use(self, stream: Stream) -> AbstractContextManager[None]:
        """Makes a stream the calling thread's current one within a context."""

    def record(self, stream: Stream) -> Event:
        """Returns an event for the point that all work that is queued on the stream now leads to."""

    def wait(self, stream: Stream, event: Event) -> None:
        """What is queued on the stream from now on begins when the event's own stream has reached its point."""

    def copy(self, stream: Stream, target: torch.Tensor, source: torch.Tensor, *, pinned: bool) -> None:
        """Queues a copy. One tensor is plain and in host memory, the other one is on the device.

        The host memory must exist until the copy is done. See `keep` for that of the device.

        Args:
            stream: The calling thread's current stream.
            target, source: The tensors, of one dtype and shape.
            pinned: Whether the host memory is pinned. If not, this may wait for the copy.
        """

    def keep(self, tensor: torch.Tensor, stream: Stream) -> None:
        """Keeps the memory of a tensor on the device until the stream has done all that is queued on it now."""

    def pin(self, address: int, size: int) -> bool:
        """Registers host memory, so that the device copies from and to it directly. Returns whether that worked."""

    def unpin(self, address: int) -> None:
        """Undoes `pin`. To be called before the memory is unmapped."""
