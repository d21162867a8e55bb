"""One push-pull or broadcast of NDArrays, on MXNet's engine from the first copy to the last."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from psum.client import PsumError, Ticket
from psum.mxnet import _engine
from psum.mxnet._arguments import Arrays
from psum.mxnet._compat import ENGINE_IS_NAIVE, MXNetError, mx
from psum.mxnet._inspection import context_of
from psum.mxnet._memory import flat_bytes, queue_plain_layout
from psum.mxnet._stages import Stage, StagePool


class Exchange:
    """What happens between a call of the store and the result in the outs.

    Everything goes through one array in host memory, the target: one of the outs where one can be used in place, else a
    stage array. The values are copied (one) or added up (several) into the target, unless the only value is the target;
    one asynchronous engine operation on the target exchanges it with the other ranks; the target is copied to the other
    outs. All of these are queued at once, and the engine keeps them in order with each other and with whatever else
    uses the arrays.

    Args:
        ticket: The announced operation. It is started or aborted here, whatever happens.
        values: What this rank contributes; None where it only receives.
        outs: Where the result goes.
        stages: Where stage arrays are taken from.
        in_place: Whether the arrays of a context can be used in place.
        awaited: Whether somebody will wait for its end.
    """

    def __init__(
        self,
        ticket: Ticket,
        values: Arrays | None,
        outs: Arrays,
        stages: StagePool,
        in_place: Callable[[Any], bool],
        *,
        awaited: bool,
    ) -> None:
        self._ticket = ticket
        self._values = values
        self._outs = outs
        self._stages = stages
        self._in_place = in_place
        self._target: Any = None
        self._stage: Stage | None = None
        # Most are not waited for, and an event costs as much as all the rest of this.
        self._ended = threading.Event() if awaited or ENGINE_IS_NAIVE else None
        self._error: PsumError | None = None

    def begin(self, priority: int) -> None:
        """Queues it all and returns; with the NaiveEngine it waits for the result instead.

        Args:
            priority: The higher, the sooner, among the engine operations that are ready.

        Raises:
            MXNetError: MXNet refused the copies or the operation; with the NaiveEngine also where the exchange failed.
        """
        try:
            self._choose_target()
            self._gather()
            queue_plain_layout(self._target)
            if not ENGINE_IS_NAIVE:
                # Not kept here: in a cycle of references, the arrays would outlive their use by an unknown time.
                _engine.push(self._target, _engine.Operation(self._run, self._skipped), priority=priority)
        except BaseException as error:
            self._withdraw(f"{type(error).__name__}: {error}")
            raise
        if ENGINE_IS_NAIVE:
            self._run_now()
        self._scatter()

    def wait(self) -> None:
        """Waits until the exchange has ended, well or not, and the outs can be read.

        Raises:
            MXNetError: It failed.
        """
        # An event, unlike wait_to_read, lets Ctrl-C through.
        self._wait_for_end()
        for out in self._outs.items:
            out.wait_to_read()
        # The engine raises an error at one reader only, which may have been another.
        self._raise_error()

    def _choose_target(self) -> None:
        # An empty array has no memory that would have to be somewhere.
        usable = [out for out in self._outs.items if self._outs.nbytes == 0 or self._in_place(context_of(out))]
        if usable:
            only_value = self._values.items[0] if self._values is not None and len(self._values.items) == 1 else None
            self._target = next((out for out in usable if out is only_value), usable[0])
        else:
            with _copying(self._outs.shape):
                self._stage = self._stages.take(self._outs)
            self._target = self._stage.array

    def _gather(self) -> None:
        """Queues what brings the values into the target."""
        if self._values is None or self._values.nbytes == 0:
            return
        first, *others = self._values.items
        if first is self._target and not others:
            return
        with _copying(self._outs.shape):
            self._bring(first, others)

    def _bring(self, first: Any, others: Sequence[Any]) -> None:
        if others:
            device = first.context
            addends = [first, *(item if item.context == device else item.copyto(device) for item in others)]
            if device == self._target.context:
                mx.nd.add_n(*addends, out=self._target)
                return
            first = mx.nd.add_n(*addends)
        if first is not self._target:
            first.copyto(self._target)

    def _scatter(self) -> None:
        """Queues what brings the target into the other outs."""
        others = [out for out in self._outs.items if out is not self._target]
        if others and self._outs.nbytes:
            with _copying(self._outs.shape):
                for out in others:
                    self._target.copyto(out)

    def _run(self, operation: _engine.Operation | None) -> None:
        """The target is ready. (Called by the engine, with what is to be completed; None with the NaiveEngine.)"""
        try:
            view = flat_bytes(self._target, self._outs.nbytes)
        except BaseException as error:
            self._withdraw(f"its memory could not be accessed: {error}")
            raise
        self._ticket.start(
            None if self._values is None else view,
            view,
            functools.partial(self._done, operation),
            None if self._stage is None else self._stage.place,
        )

    def _run_now(self) -> None:
        """The target is ready, as everything is with the NaiveEngine."""
        self._run(None)
        self._wait_for_end()
        self._raise_error()

    def _wait_for_end(self) -> None:
        assert self._ended is not None
        self._ended.wait()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise MXNetError(str(self._error)) from self._error

    def _skipped(self) -> None:
        """The target will never be ready. (Called by the engine.)"""
        self._withdraw("an MXNet operation that computes its value failed there")

    def _withdraw(self, reason: str) -> None:
        self._ticket.abort(reason)
        if self._stage is not None:
            self._stages.drop()
        if self._ended is not None:
            self._ended.set()

    def _done(self, operation: _engine.Operation | None, error: PsumError | None) -> None:
        """The exchange has ended. (Called by the client, from any thread.)"""
        self._error = error
        if self._stage is not None:
            if error is None:
                self._stages.give_back(self._stage, self._outs)
            else:
                self._stages.drop()
        if operation is not None:
            operation.complete(None if error is None else str(error))
        if self._ended is not None:
            self._ended.set()


@contextlib.contextmanager
def _copying(shape: tuple[int, ...]) -> Iterator[None]:
    """Keeps copies out of the graph that autograd may be recording, and allows them for arrays without dimensions."""
    recording = mx.autograd.pause() if mx.autograd.is_recording() else contextlib.nullcontext()
    with recording, mx.util.np_shape(True) if shape == () else contextlib.nullcontext():
        yield
