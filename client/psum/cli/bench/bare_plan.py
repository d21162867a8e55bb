"""What a pipeline without psum moves and adds: psum's sizes, order and credit."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Final

PLANES: Final = ("inline", "direct", "shm")


@dataclasses.dataclass(frozen=True)
class Plan:
    """One pipeline.

    Attributes:
        plane: One of PLANES.
        workers: The number of workers. There is one server.
        pieces: The bytes of each message's payload in a step, in order.
        window: How many pieces a worker may have under way.
        warmup: Steps before the timed ones, at least 1.
        steps: Timed steps.
    """

    plane: str
    workers: int
    pieces: list[int]
    window: int
    warmup: int
    steps: int

    def dump(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @property
    def total(self) -> int:
        """The number of pieces of a worker in all steps."""
        return len(self.pieces) * (self.warmup + self.steps)

    @property
    def first_timed(self) -> int:
        """The number of the first piece that is timed."""
        return len(self.pieces) * self.warmup


def pieces(sizes: Sequence[int], most: int, least: int) -> Iterator[int]:
    """Cut and join tensors as psum's messages do.

    Args:
        sizes: The bytes of the tensors.
        most: The bytes of a shard. Larger tensors are cut.
        least: Smaller tensors are joined until they have as many bytes.
    """
    joined = 0
    for size in sizes:
        while size > most:
            yield most
            size -= most
        joined += size
        if joined >= least:
            yield joined
            joined = 0
    if joined:
        yield joined
