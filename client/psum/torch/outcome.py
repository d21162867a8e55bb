"""What becomes of a transfer that was started: an object to wait for, and torch futures that carry errors."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import torch
from psum.client import PsumError, Store
from psum.torch import staging


class Outcome(Future[None]):
    """The `done` of a transfer, to wait for. It cannot be cancelled, because other ranks count on the transfer.

    Args:
        store: The store of the transfer's key.
        tensor: The tensor that receives the result.
    """

    def __init__(self, store: Store, tensor: Any) -> None:
        super().__init__()
        self._client = store.client
        self._tensor = tensor
        self._arrival: Any = None
        """On a GPU: an event after the result."""

    def __call__(self, error: PsumError | None) -> None:
        """Ends it."""
        if error is not None:
            self.set_exception(error)
            return
        try:
            if staging.devices_of([self._tensor]):
                self._arrival = staging.mark(self._tensor.device)
        except Exception as failure:
            lost = PsumError(f"the result has arrived, and {self._tensor.device} failed: {failure}")
            lost.__cause__ = failure
            self.set_exception(lost)
        else:
            self.set_result(None)

    def cancel(self) -> bool:
        """Does nothing."""
        return False

    def wait(self) -> None:
        """Waits until psum has the result. On a GPU, the current stream comes after the result then.

        Raises:
            PsumError: The transfer failed.
            RuntimeError: A callback called this in psum's own thread, which brings the result.
        """
        if not self.done():
            self._client.check_may_wait()
        error = self.exception()
        if error is not None:
            # The same object may be raised many times; it must not collect all their tracebacks.
            raise error.with_traceback(None)
        if self._arrival is not None:
            staging.come_after(self._tensor.device, self._arrival)


def wait_for_all(outcomes: Iterable[Outcome]) -> None:
    """Waits until all transfers have ended, so that their memory is the caller's again. Then raises the first error.

    Raises:
        PsumError: A transfer failed.
    """
    failed = None
    for outcome in outcomes:
        try:
            outcome.wait()
        except PsumError as error:
            failed = failed or error
    if failed is not None:
        raise failed.with_traceback(None)


def torch_future(result: Any) -> tuple[Any, Callable[[PsumError | None], None]]:
    """Makes a torch.futures.Future of a transfer.

    torch.futures.Future.set_exception would not do: code in C++, such as DistributedDataParallel, would take the
    exception for the future's value. An error that a `then` callback raises is an error in Python and in C++. Both see
    a RuntimeError with the text of psum's error.

    Args:
        result: The future's value if the transfer succeeds: the tensor that receives the result.

    Returns:
        The future, and the transfer's `done`.
    """
    ended: Any = torch.futures.Future(devices=staging.devices_of([result]))
    failure: list[PsumError] = []

    def done(error: PsumError | None) -> None:
        if error is not None:
            failure.append(error)
        ended.set_result(result)

    def unpack(_: Any) -> Any:
        if failure:
            raise failure[0].with_traceback(None)
        return result

    return ended.then(unpack), done
