"""Waits for arrays that let the handlers of signals run.

Python runs handlers in the main thread, between two of its instructions. MXNet waits in one call into C, so a handler
would run only after the sum has come, which may need a rank that is stuck. A scheduler that ends a job kills its
processes before that, and what the handler should have saved is lost.

While sums are under way, MXNet's functions for waiting therefore first wait in Python: for an operation on the engine
that does nothing and is queued behind all others on the array. After that, MXNet has nothing left to wait for. This
module replaces the functions in the object through which all of MXNet's Python code calls the library. That covers
`asnumpy`, `wait_to_read`, `waitall`, `save`, writes to an array, and everything built on these. It does not cover
operators whose result has a shape that depends on values (`boolean_mask`, `nonzero`): they wait in the call that queues
them.
"""

import contextlib
import ctypes
import functools
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from psum.mxnet.compat import LIB, MXNetError, mx
from psum.mxnet.engine import operations
from psum.runtime import Waiters

#: The functions that wait until an array can be read, and the position of that argument.
_READERS: Final = {
    "MXNDArrayWaitToRead": 0,
    "MXNDArraySyncCopyToCPU": 0,
    "MXNDArrayGetSharedMemHandle": 0,
    "MXNDArraySaveRawBytes": 0,
    "MXNDArraySyncCheckFormat": 0,
    "MXNDArraySyncCopyFromNDArray": 1,
}
#: The functions that wait until an array can be written, and the position of that argument.
_WRITERS: Final = {"MXNDArrayWaitToWrite": 0, "MXNDArraySyncCopyFromCPU": 0}
#: The functions that read a list of arrays, and the position of that argument.
_LIST_READERS: Final = {"MXNDArraySave": 2, "MXNDArrayLegacySave": 2}
#: The functions that wait for everything.
_FOR_ALL: Final = ("MXNDArrayWaitAll",)

_interrupted = False

_untold: list[Exception] = []
"""Errors that were taken from MXNet, which raises each only once, and that no caller got yet."""
_taker: int | None = None
"""The thread that takes them at the moment."""
_taken = Waiters()


def install() -> None:
    """Replaces MXNet's functions. Call it once."""
    for names, wait in (
        (_READERS, functools.partial(_wait_for_one, writes=False)),
        (_WRITERS, functools.partial(_wait_for_one, writes=True)),
        (_LIST_READERS, _wait_for_list),
    ):
        for name, position in names.items():
            _replace(name, functools.partial(_at, position, wait))
    for name in _FOR_ALL:
        _replace(name, _wait_for_all)


def interrupted() -> bool:
    """Returns whether the last wait ended because the handler of a signal raised something, as that of Ctrl-C does."""
    return _interrupted


def is_interruptible(frame: types.FrameType) -> bool:
    """Returns whether a thread whose innermost frame this is waits where handlers of signals can run."""
    return frame.f_globals is globals()


def take_errors() -> None:
    """Takes the errors that MXNet keeps of failed operations. The next wait raises the first of them."""
    global _taker
    _taker = threading.get_ident()
    try:
        mx.nd.waitall()
    except MXNetError as error:
        _untold.append(error)
    finally:
        _taker = None
        _taken.wake()


def forget() -> None:
    """Forgets the parent's errors and threads. For a forked child."""
    global _taker, _taken
    _untold.clear()
    _taker, _taken = None, Waiters()


@contextlib.contextmanager
def noting_interrupts() -> Iterator[None]:
    """Marks a wait, so that `interrupted` tells how it ended."""
    global _interrupted
    try:
        yield
    except BaseException:
        _interrupted = True
        raise
    _interrupted = False


def _replace(name: str, wait: Callable[..., None]) -> None:
    try:
        function = getattr(LIB, name)
    except AttributeError:
        # This MXNet does not have the function.
        return

    def interruptible(*arguments: Any) -> Any:
        # Only the main thread runs handlers, and only a wait for sums may wait for another rank.
        if operations.outstanding() and threading.current_thread() is threading.main_thread():
            with noting_interrupts():
                wait(*arguments)
        status = function(*arguments)
        if _taker is not None or _untold:
            _raise_untold()
        return status

    setattr(LIB, name, interruptible)


def _raise_untold() -> None:
    if _taker == threading.get_ident():
        return
    # The operation that this thread has waited for may have failed.
    _taken.wait_for(lambda: _taker is None)
    # Another thread may have raised it already.
    with contextlib.suppress(IndexError):
        error = _untold.pop(0)
        raise error


def _at(position: int, wait: Callable[[Any], None], *arguments: Any) -> None:
    wait(arguments[position])


def _wait_for_one(handle: Any, *, writes: bool) -> None:
    ready = threading.Lock()
    ready.acquire()
    operations.call_when_ready(handle, ready.release, writes=writes)
    ready.acquire()


def _wait_for_list(handles: Iterable[int]) -> None:
    for handle in handles:
        _wait_for_one(ctypes.c_void_p(handle), writes=False)


def _wait_for_all(*_: Any) -> None:
    operations.wait_until_released()
