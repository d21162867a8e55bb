"""Whoever talks to an aggregator: a worker's session, or a relay that stands for several ranks."""

from collections.abc import Iterable
from typing import Protocol

from psum.planes import WorkerPlane
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import PsumError


class Party(Protocol):
    """What makes the messages to aggregators, and takes their answers. Aggregators are named by their index.

    Session documents the methods.
    """

    @property
    def title(self) -> str:
        """Who this is, in the log and in errors, such as "rank 3"."""

    @property
    def failure(self) -> PsumError | None:
        """Why nothing more is sent; None while the job goes on."""

    def next_message(self, aggregator: int) -> bytes | None:
        """The next message to an aggregator, None if nothing may be sent now."""

    def following(self, aggregator: int) -> list[memoryview]:
        """The payloads that must follow the last message to an aggregator on the data connection; given once."""

    def handle(
        self,
        aggregator: int,
        message: pb.ExchangeResponse,
        payload: memoryview,
        following: Iterable[memoryview],
        now: float,
    ) -> None:
        """Handles a message from an aggregator.

        Raises:
            ProtocolError: The message is wrong here.
        """

    def welcomed(self, welcome: pb.Welcome) -> None:
        """Takes what an aggregator said on a new stream."""

    def use_plane(self, aggregator: int, plane: WorkerPlane) -> None:
        """Uses a plane for large payloads on a new stream to an aggregator."""

    def waits(self, aggregator: int) -> bool | None:
        """Whether something was sent to an aggregator that has no result yet; None: the aggregator is about to end."""

    def disconnected(self, aggregator: int) -> None:
        """Notes that the stream to an aggregator has broken."""

    def reconnected(self, aggregator: int) -> None:
        """Begins anew on a new stream to an aggregator."""
