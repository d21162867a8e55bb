"""Waiting for arrays in a way that lets the handlers of signals run.

Python runs them in the main thread between two of its own instructions, and MXNet waits in one call into C: a handler
would not run before the sum that is waited for comes, which may need a rank that is stuck. A scheduler that ends a job
kills its processes before that, and what the handler should have saved is lost.

So where sums are under way, MXNet's functions for waiting first wait in Python, for an operation of the engine's that
does nothing and stands behind all others on the array. After that, they have nothing to wait for any more. This
replaces them in the object through which all of MXNet's Python code calls the library: `asnumpy`, `wait_to_read`,
`waitall`, `save`, writing to an array and all that is built on these are covered. Not covered are operators whose
result has a shape that depends on values (`boolean_mask`, `nonzero`): they wait in the call that queues them.
"""

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from psum.mxnet.compat import LIB, MXNetError, mx
from psum.mxnet.engine import operations
from psum.runtime import Waiters

#: Those that wait until an array can be read, and which of their arguments that is.
_READERS: Final = {
    "MXNDArrayWaitToRead": 0,
    "MXNDArraySyncCopyToCPU": 0,
    "MXNDArrayGetSharedMemHandle": 0,
    "MXNDArraySaveRawBytes": 0,
    "MXNDArraySyncCheckFormat": 0,
    "MXNDArraySyncCopyFromNDArray": 1,
}
#: Those that wait until an array can be written to.
_WRITERS: Final = {"MXNDArrayWaitToWrite": 0, "MXNDArraySyncCopyFromCPU": 0}
#: Those that read a list of arrays.
_LIST_READERS: Final = {"MXNDArraySave": 2, "MXNDArrayLegacySave": 2}
#: Those that wait for everything.
_FOR_ALL: Final = ("MXNDArrayWaitAll",)

_interrupted = False

_owed: list[Exception] = []
"""Errors that were taken from MXNet, which raises each only once, and that nobody was told of."""
_taker: int | None = None
"""The thread that takes them at the moment."""
_taken = Waiters()


def install() -> None:
    """Replaces MXNet's functions. To be called once."""
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
    """Whether what the handler of a signal raised, as that of Ctrl-C does, has ended the last wait."""
    return _interrupted


def take_errors() -> None:
    """Takes the errors that MXNet keeps of failed operations: who waits for something next is told of the first."""
    global _taker
    _taker = threading.get_ident()
    try:
        mx.nd.waitall()
    except MXNetError as error:
        _owed.append(error)
    finally:
        _taker = None
        _taken.wake()


def forget() -> None:
    """To be called in a forked child: its parent's errors are not the child's, and nor are its parent's threads."""
    global _taker, _taken
    _owed.clear()
    _taker, _taken = None, Waiters()


@contextlib.contextmanager
def noting_interrupts() -> Iterator[None]:
    """What is done here is a wait, of which `interrupted` tells."""
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
        # This MXNet has no such function.
        return

    def interruptible(*arguments: Any) -> Any:
        # Only the main thread runs handlers, and only what waits for sums may wait for another rank.
        if operations.outstanding() and threading.current_thread() is threading.main_thread():
            with noting_interrupts():
                wait(*arguments)
        status = function(*arguments)
        if _taker is not None or _owed:
            _pay()
        return status

    setattr(LIB, name, interruptible)


def _pay() -> None:
    if _taker == threading.get_ident():
        return
    # What this thread has waited for may be what has failed.
    _taken.wait_for(lambda: _taker is None)
    # Another thread may have come first.
    with contextlib.suppress(IndexError):
        error = _owed.pop(0)
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
