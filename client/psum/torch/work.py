"""What a collective returns: a torch.distributed.Work."""

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import numpy as np

import torch
import torch.distributed as dist
from psum.client import Loan, PsumError
from psum.torch import bucket_calls, staging
from psum.torch.callback_threads import CallbackThreads
from psum.torch.compilation import not_compiled
from psum.torch.profiling import begin_event
from torch.futures import Future

_NO_TIMEOUT: Final = timedelta(0)


@not_compiled
class PsumWork(dist.Work):  # type: ignore[misc]
    """A collective under way: some transfers, and then some steps on this rank.

    The thread that waits first carries out the steps, which copy the result to where the caller wants it. psum's own
    thread only counts the transfers.

    The result may be lent (see psum.torch.borrowers). Then the future's value is another tensor, which views it.
    Whoever uses the work in any other way finds the result in the tensors as always: it is copied to them first.

    Args:
        title: What it is, for people.
        result: The tensors that hold the result in the end.
        transfers: How many calls of `done` end it.
        steps: Carried out once, in order, after the last transfer, if none has failed.
        callbacks: Runs the callbacks of its future.
        patience: Seconds that `wait` waits at most, if its caller does not say.
        whom: Says which ranks it waits for, in sentences. May take some seconds.
        gradients: Whether it sums gradients, in an elastic job.
    """

    def __init__(
        self,
        title: str,
        result: Sequence[torch.Tensor],
        *,
        transfers: int,
        steps: Sequence[Callable[[], object]],
        callbacks: CallbackThreads,
        patience: float,
        whom: Callable[[], str],
        gradients: bool = False,
    ) -> None:
        super().__init__()
        self._title = title
        self._result = list(result)
        self._pending = transfers
        self._steps = tuple(steps)
        self._callbacks = callbacks
        self._patience = patience
        self._whom = whom
        self._gradients = gradients
        self._lent: list[torch.Tensor] = []
        """The tensor of a result that is lent and was not copied."""
        self._loan: Loan | None = None
        """What that tensor shows."""
        self._error: Exception | None = None
        self._future: Any = None
        self._waited_for = False
        self._end_event = begin_event(f"psum:{title}")
        self._lock = threading.RLock()
        self._arrived = threading.Event()
        self._devices = staging.devices_of(self._result)
        self._events: list[Any] = []
        """On each GPU, the moment after which the result is there."""
        if not transfers:
            self._end_event()
            self._arrived.set()

    def __repr__(self) -> str:
        state = "done" if self._arrived.is_set() else "under way"
        return f"<{type(self).__name__} {self._title}: {self._error or state}>"

    def done(self, error: PsumError | None) -> None:
        """Called with the outcome of each transfer, from any thread."""
        with self._lock:
            self._pending -= 1
            self._error = self._error or error
            if self._pending:
                return
            self._mark()
        try:
            self._end_event()
        finally:
            self._arrived.set()

    def lent(self, loan: Loan) -> None:
        """Called before `done` with the result, if that is lent: the sum of the only tensor."""
        (tensor,) = self._result
        self._loan = loan
        self._lent = [torch.from_numpy(np.asarray(loan)).view(tensor.dtype).view(tensor.shape)]

    def wait(self, timeout: timedelta | None = _NO_TIMEOUT) -> bool:
        """Waits until the result is there. For tensors on a GPU, this thread waits until the sum is in host memory. The
        current stream then waits for the copy to the GPU, and this thread does not.

        Args:
            timeout: How long. Zero or None: as long as the group waits.

        Returns:
            True.

        Raises:
            PsumError: The collective failed.
            TimeoutError: It has not ended in that time. It goes on; do not use its tensors.
        """
        seconds = timeout.total_seconds() if timeout else self._patience
        if not self._arrived.wait(seconds):
            raise self._late(seconds)
        with self._lock:
            for device, event in zip(self._devices, self._events, strict=False):
                staging.come_after(device, event)
            self._conclude()
            self._write_lent()
            self._waited_for = True
        if self._error is not None:
            # The same object may be raised several times; it must not collect all their tracebacks.
            raise self._error.with_traceback(None)
        return True

    def synchronize(self) -> None:
        """Waits like `wait`."""
        self.wait()

    def is_completed(self) -> bool:
        """Whether it has ended, with a result or an error. `wait` then does not wait for other ranks."""
        if not self._arrived.is_set():
            return False
        self._write_lent()
        return True

    def is_success(self) -> bool:
        """Whether it has ended with a result."""
        return self.is_completed() and self._error is None

    def exception(self) -> Exception | None:
        """Returns its error if it has ended with one."""
        return self._error if self._arrived.is_set() else None

    def result(self) -> list[torch.Tensor]:
        """Waits, and returns the tensors with the result. Raises like `wait`."""
        self.wait()
        return self._result

    def get_future(self) -> Any:
        """Returns a torch.futures.Future of the list of tensors.

        Callbacks of the future run in a thread of the group, in the order in which the program asked for futures, or in
        the thread that adds them if the result is there. They may begin collectives of this group, and wait for them.
        If the work was waited for, the future is complete at once. An error reaches callbacks, and whoever waits for
        the future, as a RuntimeError with its text.
        """
        with self._lock:
            if self._future is None:
                begun: Any = Future(devices=self._devices)
                # An exception that is set on a future is a value for C++, and DDP would take it for tensors. An error
                # in a callback is an error there too.
                self._future = begun.then(self._outcome)
                if self._waited_for:
                    # In the program's order, on every rank. DDP's C++ code reads the value as soon as it has waited.
                    self._complete(begun)
                else:
                    self._callbacks.submit(lambda: self._complete(begun))
            return self._future

    def _complete(self, begun: Any) -> None:
        """Completes the future, in the thread for callbacks."""
        if not self._arrived.wait(self._patience):
            error = self._late(self._patience)
            self._error = self._error or error
        try:
            with staging.after_results(self._result), bucket_calls.callbacks_of(gradients=self._gradients):
                if self._arrived.is_set():
                    self._conclude()
                begun.set_result(self._result)
        except Exception as error:
            if begun.done():
                raise
            self._error = self._error or error
            begun.set_result(self._result)

    def _outcome(self, _: Any) -> list[torch.Tensor]:
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._lent or self._result

    def _write_lent(self) -> None:
        """Copies a result that is lent to where collectives have theirs."""
        with self._lock:
            lent, self._lent, loan, self._loan = self._lent, [], self._loan, None
            # It is given up when the tensor is summed again: what the tensor has then is newer.
            if lent and self._error is None and loan is not None and not loan.is_given_up:
                self._result[0].detach().copy_(lent[0])

    def _late(self, seconds: float) -> TimeoutError:
        return TimeoutError(
            f"{self._title} has not got its result within the timeout of {seconds:g} s. {self._whom()} Its tensors must"
            " not be used, because they may still change"
        )

    def _conclude(self) -> None:
        """Carries out the steps on the current streams, unless that was done."""
        with self._lock:
            steps, self._steps = self._steps, ()
            if self._error is not None or not steps:
                return
            try:
                for step in steps:
                    step()
            except Exception as error:
                self._error = error
            self._mark()

    def _mark(self) -> None:
        """Records on each GPU that what the current stream has done so far belongs to the result.

        A GPU that cannot do so is the work's error: whoever waits must hear of it.
        """
        try:
            self._events = [staging.mark(device) for device in self._devices]
        except Exception as error:
            self._error = self._error or error
