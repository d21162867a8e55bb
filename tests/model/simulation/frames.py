"""What travels on a simulated stream: messages, and the payloads that follow them on the plane direct."""

import types
from collections import deque
from collections.abc import Generator, Iterable

from psum.wire.errors import ProtocolError

Frame = bytes | memoryview
"""A message, or as a memoryview a payload that follows one."""


class Sender:
    """One end that sends frames.

    Args:
        flight: The frames in flight to the other end.
    """

    def __init__(self, flight: deque[Frame]) -> None:
        self._flight = flight
        self._unsent: deque[memoryview] = deque()
        """Payloads of the last message that the kernel has not taken yet. Until then they are their owner's memory."""
        self._open = True

    def __bool__(self) -> bool:
        """Whether payloads of the last message wait."""
        return bool(self._unsent)

    def send(self, message: bytes, following: Iterable[memoryview]) -> None:
        """Send a message. The payloads that follow it wait."""
        if self._open:
            assert not self._unsent, "a message goes between another one and its payloads"
            self._flight.append(message)
            self._unsent.extend(following)

    def go_on(self) -> None:
        """Send the next payload, as it is now."""
        self._flight.append(memoryview(bytes(self._unsent.popleft())))

    def end(self) -> None:
        """Send nothing more, or nothing that arrives."""
        self._open = False
        self._unsent.clear()


class Received:
    """A message that an aggregator has received, and the payloads that follow it. Counterpart of DataConnection.

    Args:
        message: The message.
        frames: The frames in flight behind it.
    """

    def __init__(self, message: bytes, frames: deque[Frame]) -> None:
        self.message = message
        self.payloads: list[Frame] = []
        """The payloads that were taken."""
        self._frames = frames

    async def receive_payload(self, size: int) -> memoryview:
        """Wait for the next payload."""
        await _next_frame()
        frame = self._frames.popleft()
        self.payloads.append(frame)
        return as_payload(frame, size)

    def share_links(self, share: float) -> None:
        """Do nothing: there are no links."""

    def again(self) -> "Received":
        """Return the same message with the same payloads, as if it was sent twice."""
        return Received(self.message, deque(self.payloads))


def as_payload(frame: Frame, size: int) -> memoryview:
    """Return a frame that must be a payload of this size, as DataConnection requires it.

    Raises:
        ProtocolError: It is something else.
    """
    if not isinstance(frame, memoryview) or len(frame) != size:
        raise ProtocolError(f"{type(frame).__name__} of {len(frame)} bytes where a payload of {size} was announced")
    return frame


def as_message(frame: Frame) -> bytes:
    """Return a frame that must be a message.

    Raises:
        ProtocolError: It is a payload.
    """
    if not isinstance(frame, bytes):
        raise ProtocolError(f"a payload of {len(frame)} bytes that was not announced")
    return frame


@types.coroutine
def _next_frame() -> Generator[None, None, None]:
    """Let whoever drives the receiver go on when there is another frame."""
    yield
