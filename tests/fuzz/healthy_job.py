"""A job that keeps to the protocol while others are fuzzed, and whose sums are checked."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from psum.client import ElementType, Operation, Ticket
from psum.v1 import aggregator_pb2 as pb
from tests.fuzz.harness import ViolationError
from tests.fuzz.streams import Context, Worker

_TENSORS: Final = (("h", 7), ("i", 12_000))


class HealthyJob:
    """The two workers of a job.

    Args:
        hello: What both say, besides their ranks.
        open: Lets the service handle a worker's stream.
    """

    def __init__(self, hello: pb.Hello, open: "Callable[[Context], asyncio.Task[None]]") -> None:
        self.rounds = 0
        """Number of checked rounds."""
        self._workers = []
        for rank in range(2):
            own = pb.Hello(rank=rank, incarnation=77 + rank)
            own.MergeFrom(hello)
            own.rank = rank
            self._workers.append(Worker(own))
        self._tasks = [open(worker) for worker in self._workers]
        self._values: Sequence[Sequence[tuple[Ticket, bytearray]]] = ()

    def begin_round(self) -> None:
        """Let the workers contribute to the next round."""
        self._values = [
            [
                worker.begin(name, ElementType.INT32, Operation.SUM, _value(rank, self.rounds, elements))
                for name, elements in _TENSORS
            ]
            for rank, worker in enumerate(self._workers)
        ]

    async def finish_round(self) -> None:
        """Wait for the sums of the round, and check them.

        Raises:
            ViolationError: They do not come, or are wrong.
        """
        turns = 0
        while any(worker.pending for worker in self._workers):
            turns += 1
            await asyncio.sleep(0 if turns < 100 else 0.001)
            if turns > 5000 or any(task.done() for task in self._tasks):
                raise ViolationError("the healthy job is disturbed: its sums do not arrive")
        for rank, worker in enumerate(self._workers):
            for (ticket, value), (_, elements) in zip(self._values[rank], _TENSORS, strict=True):
                del worker.targets[ticket]
                if worker.outcomes.pop(ticket) != [None]:
                    raise ViolationError("the healthy job is disturbed: an operation failed")
                terms = [np.frombuffer(_value(r, self.rounds, elements), np.int32) for r in range(len(self._workers))]
                if bytes(value) != (terms[0] + terms[1]).tobytes():
                    raise ViolationError(f"a sum of the healthy job is wrong: {ticket!r}")
        self.rounds += 1

    async def end(self) -> None:
        """Let the workers leave."""
        for worker in self._workers:
            worker.leave()
        await asyncio.gather(*self._tasks)


def _value(rank: int, round: int, elements: int) -> bytearray:
    return bytearray((np.arange(elements, dtype=np.int32) * (rank + 3) + round).tobytes())
