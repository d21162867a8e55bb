"""An operation on a tensor whose round is fixed, and which starts when the tensor's value is in host memory."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

import torch
from psum.client import PsumError, Ticket
from psum.torch.tensors import flat_array


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A reserved push-pull or broadcast.

    Attributes:
        ticket: The operation, to be started or aborted exactly once.
        gives: Whether the value of this rank counts.
        takes: Whether the tensor receives the result. If not, it has the result already.
        as_bytes: Whether it is a sum of bytes to which ranks that do not give contribute zeros.
    """

    ticket: Ticket
    gives: bool
    takes: bool
    as_bytes: bool

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
        self.ticket.start(array if self.gives or self.as_bytes else None, array, done, staged)
