"""One push-pull or broadcast of NDArrays on MXNet's engine, from the first copy to the last.

A broadcast is a push-pull to which only rank 0 contributes.
"""

import functools
import itertools
import threading
from collections.abc import Callable
from typing import Any

from psum.client import Operation, PsumError, Ticket, scale
from psum.mxnet.arguments import Arrays
from psum.mxnet.arrays import copies
from psum.mxnet.arrays.inspection import context_of
from psum.mxnet.arrays.memory import flat_bytes, queue_plain_layout
from psum.mxnet.compat import ENGINE_IS_NAIVE, MXNetError
from psum.mxnet.engine import operations, waits
from psum.mxnet.shared_gradients import SharedGradients
from psum.mxnet.staging.host_memory import worker
from psum.mxnet.staging.lanes import Lane
from psum.mxnet.staging.stages import VALUE_FAILED, StagePool, Turn


class PushPull:
    """Everything between a call of the store and the result in the outs.

    The target is one array in host memory: one of the outs that can be used in place, else a stage. First the engine
    copies the only value into the target, or adds several up there; nothing is needed if the only value is the target.
    Then an asynchronous engine operation sums the target with those of the other ranks. Last, the engine copies the
    target to the other outs. All of this is queued at once, and the engine orders it with everything else that uses the
    arrays.

    A stage may need an operation before that. A new stage must be prepared, which may take long: the engine waits for
    it, and the caller does not. A stage in use by an earlier round of the key cannot be used if that round fails.

    Args:
        ticket: The reserved operation. The push-pull starts or aborts it in every case.
        key: The key of the operation: the store, the name, and what to do.
        values: What this rank contributes, or with `stands_in` would contribute; None if it only receives.
        outs: Receive the result.
        stages: Lends stages.
        shared: The gradients that aggregators can read where they are.
        in_place: Whether the arrays of a context can be used in place.
        lane: The order of the key's sums; None if only MXNet's engine orders them.
        awaited: Whether `wait` will be called.
        nominal: The number of ranks by which the program divides the sum, which is scaled if fewer contributed. 0: the
            sum is taken as it is.
        stands_in: Whether this rank receives a broadcast, and its values may take the place of those of a lost root.
    """

    def __init__(
        self,
        ticket: Ticket,
        key: tuple[object, str, Operation],
        values: Arrays | None,
        outs: Arrays,
        stages: StagePool,
        shared: SharedGradients,
        in_place: Callable[[Any], bool],
        lane: Lane | None = None,
        *,
        awaited: bool,
        nominal: int = 0,
        stands_in: bool = False,
    ) -> None:
        self._ticket = ticket
        self._key = key
        self._values = values
        self._outs = outs
        self._stages = stages
        self._shared = shared
        self._in_place = in_place
        self._lane = lane
        self._place = 0 if lane is None else lane.take()
        self._nominal = nominal
        self._stands_in = stands_in
        self._target: Any = None
        self._turn: Turn | None = None
        # Most push-pulls are not waited for, and an event costs as much as all the rest of the constructor.
        self._ended = threading.Event() if awaited or ENGINE_IS_NAIVE else None
        self._error: PsumError | None = None

    def begin(self, priority: int) -> None:
        """Queues everything and returns. Calls for operations on one key must come in the order of their rounds.

        Args:
            priority: Higher values go first among engine operations that are ready.

        Raises:
            MXNetError: MXNet refused the copies or the operation.
        """
        try:
            self._choose_target(priority)
            self._gather()
            if not ENGINE_IS_NAIVE:
                # Not kept in self: a cycle of references would keep the arrays until the garbage collector runs.
                operations.push(
                    self._target, operations.Operation(self._on_target_ready, self._on_target_failed), priority=priority
                )
        except BaseException as error:
            self._withdraw(f"{type(error).__name__}: {error}")
            raise
        if not ENGINE_IS_NAIVE:
            self._scatter()

    def complete(self) -> None:
        """With the NaiveEngine, does the rest and waits for the result. With others, does nothing.

        Raises:
            MXNetError: The push-pull failed.
        """
        if ENGINE_IS_NAIVE:
            # With the NaiveEngine every array is always ready.
            self._on_target_ready(None)
            self._wait_for_end()
            self._raise_error()
            self._scatter()

    def wait(self) -> None:
        """Waits until the push-pull has succeeded or failed, and the outs can be read.

        Raises:
            MXNetError: It failed.
        """
        # First for an event, which Ctrl-C can interrupt, unlike wait_to_read.
        self._wait_for_end()
        for out in self._outs.items:
            out.wait_to_read()
        # The engine raises an error for one reader only, perhaps for another one than this.
        self._raise_error()

    def _choose_target(self, priority: int) -> None:
        # An empty array has no memory, so any will do.
        usable = [out for out in self._outs.items if self._outs.nbytes == 0 or self._in_place(context_of(out))]
        if usable:
            only_value = self._values.items[0] if self._values is not None and len(self._values.items) == 1 else None
            self._target = next((out for out in usable if out is only_value), usable[0])
        else:
            self._turn = self._stages.take(self._key, self._outs)
            self._target = self._turn.array
            self._queue_for_stage(self._turn, priority)

    def _queue_for_stage(self, turn: Turn, priority: int) -> None:
        """Queues what must happen before the stage is used."""
        if turn.fresh:
            prepare = functools.partial(turn.memory.prepare, self._stages.allocate, self._gpu())
            if ENGINE_IS_NAIVE:
                prepared = threading.Event()
                worker.do(functools.partial(_then, prepare, prepared.set))
                prepared.wait()
                return

            def begin_to_prepare(operation: operations.Operation) -> None:
                worker.do(functools.partial(_then, prepare, operation.complete))

            operations.push(turn.array, operations.Operation(begin_to_prepare, operations.ignore), priority=priority)
        elif not turn.is_first:
            name = self._key[1]

            def check(operation: operations.Operation) -> None:
                # Makes an error of its own, even if the array has that of the earlier round: MXNet raises each error
                # for one reader only, possibly for one of that round. After an error nothing is written to the stage,
                # which an aggregator may still read for the other ranks.
                failure = turn.failure()
                operation.complete(failure and f"an earlier round of key {name!r} failed on this rank: {failure}")

            operations.push(turn.array, operations.Operation(check, operations.ignore), priority=priority, always=True)

    def _gpu(self) -> int | None:
        """Returns the number of a GPU that has one of the arrays; None if none is on a GPU."""
        arrays = itertools.chain(self._outs.items, () if self._values is None else self._values.items)
        contexts = map(context_of, arrays)
        return next((context.device_id for context in contexts if context.device_type == "gpu"), None)

    def _gather(self) -> None:
        """Queues what brings the values into the target, in the plain layout."""
        values = () if self._values is None or self._values.nbytes == 0 else self._values.items
        if len(values) > 1:
            with copies.copying(self._outs.shape):
                copies.add(values, self._target, self._outs.element_type)
        elif values and values[0] is not self._target:
            with copies.copying(self._outs.shape):
                copies.copy(values[0], self._target)
        if self._turn is None or len(values) > 1:
            # A copy to a stage has that layout already.
            queue_plain_layout(self._target)

    def _scatter(self) -> None:
        """Queues what brings the target into the other outs."""
        if self._outs.nbytes and (self._turn is not None or len(self._outs.items) > 1):
            with copies.copying(self._outs.shape):
                for out in self._outs.items:
                    if out is not self._target:
                        copies.copy(self._target, out)

    def _on_target_ready(self, operation: operations.Operation | None) -> None:
        """Starts the operation: the target is ready.

        Args:
            operation: The engine's operation to complete; None with the NaiveEngine.
        """
        if self._lane is None or self._lane.is_due(self._place, lambda: self._start_late(operation)):
            self._start(operation)

    def _start_late(self, operation: operations.Operation | None) -> None:
        try:
            self._start(operation)
        except Exception as error:
            if operation is not None:
                operation.complete(f"{type(error).__name__}: {error}")

    def _start(self, operation: operations.Operation | None) -> None:
        try:
            view = flat_bytes(self._target, self._outs.nbytes)
        except BaseException as error:
            self._withdraw(f"its memory could not be accessed: {error}")
            raise
        source = None if self._values is None or self._stands_in else view
        done: Callable[[PsumError | None], None] = (
            functools.partial(self._on_result, operation)
            if not self._nominal
            else functools.partial(self._on_gradients, operation, view)
        )
        offset = None if self._turn is None else self._turn.memory.offset
        if self._shared and source is not None and self._turn is None:
            block = self._shared.block_of(self._target, self._outs.nbytes)
            if block is not None:
                done, offset = block.kept_until(done), block.offset
        self._ticket.start(source, view, done, offset, stands_in=self._stands_in)

    def _wait_for_end(self) -> None:
        assert self._ended is not None
        with waits.noting_interrupts():
            self._ended.wait()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise MXNetError(str(self._error)) from self._error

    def _on_target_failed(self) -> None:
        """Aborts the operation: the target will never be ready. The engine calls this."""
        self._withdraw(VALUE_FAILED)

    def _withdraw(self, reason: str) -> None:
        self._ticket.abort(reason)
        if self._turn is not None:
            self._stages.give_back(self._turn, reason)
        if self._lane is not None:
            self._lane.end(self._place)
        if self._ended is not None:
            self._ended.set()

    def _on_gradients(
        self, operation: operations.Operation | None, result: memoryview, error: PsumError | None
    ) -> None:
        """Scales a sum of gradients, and ends the push-pull. The client calls this, from any thread."""
        if error is None:
            scale(result, self._outs.element_type, self._ticket.contributions, self._nominal)
        self._on_result(operation, error)

    def _on_result(self, operation: operations.Operation | None, error: PsumError | None) -> None:
        """Ends the push-pull. The client calls this, from any thread."""
        self._error = error
        if self._turn is not None:
            self._stages.give_back(self._turn, None if error is None else str(error))
        if self._lane is not None:
            self._lane.end(self._place)
        if operation is not None:
            operation.complete(None if error is None else str(error))
        if self._ended is not None:
            self._ended.set()


def _then(do: Callable[[], None], do_afterwards: Callable[[], None]) -> None:
    """Does one thing after another, even if the first raises."""
    try:
        do()
    finally:
        do_afterwards()
