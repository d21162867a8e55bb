"""The sums of one array in host memory, in place: the case of a Trainer on the CPU, in which every microsecond counts.

The calling thread queues one operation on the engine, and no copies. The engine runs it when the array's value is
there, and holds back all later users of the array until the sum is there.
"""

from collections.abc import Callable
from typing import Any

from psum.client import ElementType, PsumError, Ticket, scale
from psum.mxnet.arrays.dlpack import address_of
from psum.mxnet.arrays.memory import (
    bytes_at,
    layout_can_be_set_at_once,
    queue_plain_layout,
    set_plain_layout,
)
from psum.mxnet.compat import MXNetError
from psum.mxnet.engine import operations
from psum.mxnet.shared_gradients import SharedGradients
from psum.mxnet.staging.stages import VALUE_FAILED


class InPlaceSum(operations.EngineOperation):
    """The sum of one array, and then the next one of it.

    With 10,000 keys, all their sums are under way at once. If each had objects of its own, Python's garbage collector
    would look at these again and again, which would take as long as all the rest. So one object serves all sums of a
    key that do not overlap, and it is also the callback of the ticket.

    Args:
        element_type: The type of the array's elements.
        nbytes: Its size in bytes.
        shared: The gradients that aggregators can read where they are.
        nominal: See PushPull.
    """

    __slots__ = (
        "_address",
        "_array",
        "_element_type",
        "_nbytes",
        "_nominal",
        "_reorders",
        "_shared",
        "_ticket",
        "_view",
        "free",
    )

    def __init__(self, element_type: ElementType, nbytes: int, shared: SharedGradients, nominal: int) -> None:
        super().__init__()
        self.free = True
        """Whether it may begin a sum: it has not begun one that the engine has not released."""
        self._element_type = element_type
        self._nbytes = nbytes
        self._shared = shared
        self._nominal = nominal
        self._ticket: Ticket | None = None
        self._array: Any = None
        self._address = 0
        """Where the array was in the last sum. A result of oneDNN's may move it."""
        self._reorders = False
        """Whether the array has had a layout of oneDNN's, and so may have one again."""
        self._view = memoryview(b"")
        """The memory there."""

    def begin(self, ticket: Ticket, array: Any, priority: int) -> None:
        """Queues a sum and returns. Calls for one key must come in the order of their rounds.

        Args:
            ticket: The reserved operation. It is started or aborted in every case.
            array: The array. It is kept until the engine has released it.
            priority: Higher values go first among engine operations that are ready.

        Raises:
            MXNetError: MXNet refused the operation.
        """
        self.free = False
        self._ticket = ticket
        self._array = array
        try:
            if not layout_can_be_set_at_once():
                queue_plain_layout(array)
            operations.push(array, self, priority=priority)
        except BaseException as error:
            # It is not used again: the engine may have it nevertheless.
            self._array = None
            ticket.abort(f"{type(error).__name__}: {error}")
            raise

    # In one of the engine's threads.

    def run(self) -> None:
        """See EngineOperation."""
        ticket, array = self._ticket, self._array
        assert ticket is not None
        try:
            address = self._find(array)
            if address != self._address:
                self._address, self._view = address, bytes_at(address, self._nbytes)
        except BaseException as error:
            ticket.abort(f"its memory could not be accessed: {error}")
            raise
        view = self._view
        done: Callable[[PsumError | None], None] = self
        staged = None
        if self._shared:
            block = self._shared.block_of(array, self._nbytes)
            if block is not None:
                done, staged = block.kept_until(done), block.offset
        ticket.start(view, view, done, staged)

    def skipped(self) -> None:
        """See EngineOperation."""
        assert self._ticket is not None
        self._ticket.abort(VALUE_FAILED)

    def released(self) -> None:
        """See EngineOperation."""
        self._array = self._ticket = None
        self.free = True

    def _find(self, array: Any) -> int:
        """Returns the address of the array, in the plain layout."""
        if not self._reorders:
            try:
                return address_of(array)
            except MXNetError:
                if not layout_can_be_set_at_once():
                    raise
                self._reorders = True
        set_plain_layout(array)
        return address_of(array)

    # In any thread.

    def __call__(self, error: PsumError | None) -> None:
        """Ends the sum. The client calls this."""
        if error is not None:
            self.complete(str(error))
            return
        if self._nominal:
            assert self._ticket is not None
            scale(self._view, self._element_type, self._ticket.contributions, self._nominal)
        self.complete()
