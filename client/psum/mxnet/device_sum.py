"""The sum of one array of a GPU, in place: the case of a Trainer with one device, in which every microsecond counts.

The calling thread queues one operation on the engine, and no copies. The engine runs it when the array's value is
there, and holds back all later users of the array until the sum is there. In between, DevicePipeline moves the array.
"""

from collections.abc import Callable
from typing import Any

from psum.client import Loan, PsumError, Ticket, scale
from psum.mxnet.arguments import Arrays
from psum.mxnet.arrays.dlpack import address_of
from psum.mxnet.arrays.memory import bytes_at
from psum.mxnet.compat import MAJOR_VERSION
from psum.mxnet.engine import operations
from psum.mxnet.staging.cuda_copies import can_copy, copies_of
from psum.mxnet.staging.device_pipeline import Copies, DevicePipeline
from psum.mxnet.staging.lanes import Lane
from psum.mxnet.staging.lent_sums import LEAST_BYTES, LentSums
from psum.mxnet.staging.stages import VALUE_FAILED, StagePool, Turn

#: Gives what moves the arrays of a context; None if only MXNet can copy them.
PipelineOf = Callable[[Any], DevicePipeline | None]

_pipeline = DevicePipeline(copies_of)


def pipeline_of(context: Any) -> DevicePipeline | None:
    """Returns what moves the arrays of a GPU; None if only MXNet can copy them.

    MXNet 2 says that an array is ready when its computation is queued on the GPU, so only MXNet knows when to copy.
    """
    is_usable = MAJOR_VERSION < 2 and context.device_type == "gpu" and can_copy()
    return _pipeline if is_usable else None


class DeviceSum:
    """The sum of one array on a device, in place. It starts or aborts the ticket in every case.

    Args:
        ticket: The reserved operation.
        arrays: The array.
        device: The number of its device.
        lane: The key's.
        stages: Lends stages.
        lent: Pins the memory of lent sums.
        pipeline: Moves the array.
        nominal: See PushPull.
    """

    __slots__ = (
        "_arrays",
        "_error",
        "_lane",
        "_lent",
        "_loan",
        "_nominal",
        "_operation",
        "_pipeline",
        "_place",
        "_stages",
        "_started",
        "_ticket",
        "_turn",
        "device",
        "nbytes",
        "priority",
    )

    def __init__(
        self,
        ticket: Ticket,
        arrays: Arrays,
        device: int,
        lane: Lane,
        stages: StagePool,
        lent: LentSums,
        pipeline: DevicePipeline,
        nominal: int,
    ) -> None:
        self._ticket = ticket
        self._arrays: Arrays | None = arrays
        self._lane = lane
        self._place = lane.take()
        self._stages = stages
        self._lent = lent
        self._pipeline = pipeline
        self._nominal = nominal
        self._operation: operations.Operation | None = None
        self._turn: Turn | None = None
        self._started = False
        self._loan: Loan | None = None
        """The sum, if it is lent."""
        self._error: PsumError | None = None
        self.nbytes = arrays.nbytes
        self.device = device
        self.priority = 0

    def begin(self, priority: int) -> None:
        """Queues everything and returns. Calls for operations on one key must come in the order of their rounds.

        Args:
            priority: Higher values go first among sums that are ready.

        Raises:
            MXNetError: MXNet refused the operation.
        """
        assert self._arrays is not None
        self.priority = priority
        try:
            array = self._arrays.items[0]
            operations.push(array, operations.Operation(self._on_ready, self._on_skipped), priority=priority)
        except BaseException as error:
            self._withdraw(f"{type(error).__name__}: {error}")
            raise

    # In one of the engine's threads.

    def _on_ready(self, operation: operations.Operation) -> None:
        self._operation = operation
        self._pipeline.bring_down(self)

    def _on_skipped(self) -> None:
        self._withdraw(VALUE_FAILED)

    # In the pipeline's thread.

    def queue_down(self, copies: Copies) -> bool:
        """See Transfer."""
        assert self._arrays is not None
        turn = self._turn
        if turn is None:
            if not self._lane.is_due(self._place, self._bring_down):
                return False
            turn = self._turn = self._stages.take(self, self._arrays, for_engine=False)
            if turn.fresh:
                turn.memory.prepare(self._stages.allocate, self.device)
        if turn.in_engine:
            operations.call_when_ready(turn.array.handle, self._on_stage_ready, writes=True)
            return False
        memory = turn.memory
        copies.to_host(memory.address, address_of(self._arrays.items[0]), self.nbytes, pinned=memory.pinned)
        return True

    def is_down(self) -> None:
        """See Transfer."""
        assert self._turn is not None
        memory = self._turn.memory
        view = bytes_at(memory.address, self.nbytes)
        self._started = True
        self._ticket.start(view, view, self._on_result, memory.offset, borrows=self.nbytes >= LEAST_BYTES)

    def queue_up(self, copies: Copies) -> bool:
        """See Transfer."""
        if self._error is not None:
            return False
        assert self._turn is not None
        assert self._arrays is not None
        target = address_of(self._arrays.items[0])
        if self._loan is not None:
            pinned = self._lent.pinned(self._ticket.key, self._loan, self.device)
            copies.to_device(target, self._loan.memory.address, self.nbytes, pinned=pinned)
            return True
        memory = self._turn.memory
        if self._nominal:
            # Elastic jobs lend nothing.
            view = bytes_at(memory.address, self.nbytes)
            scale(view, self._arrays.element_type, self._ticket.contributions, self._nominal)
        copies.to_device(target, memory.address, self.nbytes, pinned=memory.pinned)
        return True

    def end(self) -> None:
        """See Transfer."""
        self._end(None if self._error is None else str(self._error))

    def fail(self, error: Exception) -> None:
        """See Transfer."""
        reason = f"a copy between gpu({self.device}) and host memory failed: {error}"
        if not self._started:
            self._ticket.abort(reason)
        self._end(reason)

    def _withdraw(self, reason: str) -> None:
        self._ticket.abort(reason)
        self._lane.end(self._place)

    def _bring_down(self) -> None:
        self._pipeline.bring_down(self)

    def _end(self, failure: str | None) -> None:
        # Before the operation ends: a fork that waits for it must not meet a thread that frees arrays.
        self._arrays = None
        loan, self._loan = self._loan, None
        if loan is not None:
            loan.give_up()
        turn, self._turn = self._turn, None
        if turn is not None:
            self._stages.give_back(turn, failure)
        self._lane.end(self._place)
        operation, self._operation = self._operation, None
        if operation is not None:
            operation.complete(failure)

    def _on_stage_ready(self) -> None:
        """The engine calls this."""
        assert self._turn is not None
        self._turn.left_engine()
        self._pipeline.bring_down(self)

    def _on_result(self, error: PsumError | None) -> None:
        """The client calls this, from any thread."""
        self._error = error
        self._loan = self._ticket.loan
        self._pipeline.bring_up(self)
