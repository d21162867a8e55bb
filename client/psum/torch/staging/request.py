"""An operation on a tensor whose round is fixed, and which starts when the tensor's value is in host memory."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

import torch
from psum.client import Loan, PsumError, Ticket
from psum.torch.staging.last_steps import after
from psum.torch.tensors import flat_array


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A reserved push-pull or broadcast.

    Attributes:
        ticket: The operation, to be started or aborted exactly once.
        gives: Whether the value of this rank counts.
        takes: Whether the tensor receives the result. If not, it has the result already.
        as_bytes: Whether it is a sum of bytes to which ranks that do not give contribute zeros.
        lent: Called with the result if it is lent rather than written to the tensor. None: it is always written.
        arrived: Called with the ticket and the result in host memory, before that goes to the tensor. None: nothing is
            to be done.
        stands_in: Whether the tensor of a rank that does not give has a value that may replace a lost root's.
    """

    ticket: Ticket
    gives: bool
    takes: bool
    as_bytes: bool
    lent: Callable[[Loan], None] | None = None
    arrived: Callable[[Ticket, Any], None] | None = None
    stands_in: bool = False

    def start(self, host: torch.Tensor, done: Callable[[PsumError | None], None], staged: int | None = None) -> None:
        """Starts the operation. Returns at once.

        Args:
            host: A plain tensor in host memory. It has the value, and receives the result.
            done: Called exactly once, from any thread, with None or the error.
            staged: The offset of the memory in the client's staging memory, None if it does not lie there.
        """
        self.start_with(flat_array(host)[0], done, staged)

    def start_with(self, array: Any, done: Callable[[PsumError | None], None], staged: int | None = None) -> None:
        """Starts the operation with an array of `flat_array` or `unmarked_array`. See `start`."""
        if self.as_bytes:
            array = array.view(np.uint8)
            if not self.gives:
                array[:] = 0
        source = array if self.gives or self.as_bytes else None
        ticket, lent, arrived = self.ticket, self.lent, self.arrived
        if lent is None and arrived is None:
            ticket.start(source, array, done, staged, stands_in=self.stands_in)
            return

        def hand_over() -> None:
            if lent is not None and ticket.loan is not None:
                lent(ticket.loan)
            if arrived is not None:
                arrived(ticket, array)

        ended = after(hand_over, done, lambda: ticket.key.title)
        ticket.start(source, array, ended, staged, borrows=lent is not None)
