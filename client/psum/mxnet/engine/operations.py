"""Operations on MXNet's engine that Python completes later, from any thread.

MXNet's Python interface has no such thing, but its C interface does (MXEnginePushAsyncND), and the engine orders the
operation among all others by the array that it writes. An operation goes through these calls, each at most once:

    push ── run ── complete ── release        its array became ready
    push ── skipped ────────── release        an operation before it on its array failed

`run` and `skipped` come from the engine's threads. Until `complete` the engine holds back all later users of the array.
"""

import contextlib
import ctypes
import itertools
import logging
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any, Final

from psum.mxnet.compat import MAJOR_VERSION, QUICK, MXNetError, check_call
from psum.runtime import Waiters

_log = logging.getLogger(__name__)


class _OnComplete(ctypes.Structure):
    """What the engine hands to an operation to be told of its end (mxnet::engine::CallbackOnComplete)."""

    _fields_ = (("callback", ctypes.c_void_p), ("engine", ctypes.c_void_p), ("parameter", ctypes.c_void_p))


class _Context(ctypes.Structure):
    """The device on which an operation runs (mxnet::Context)."""

    _fields_ = (("device_type", ctypes.c_int), ("device_id", ctypes.c_int32))


# 1.9.1 calls with (RunContext*, OnComplete*, parameter), 2.0 with (RunContext*, OnStart*, OnComplete*, parameter).
_RunFunction: Final = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (4 if MAJOR_VERSION >= 2 else 3))
_ReleaseFunction: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# Keeps the interpreter's lock, as QUICK does.
_CompleteFunction: Final = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)

_CPU: Final = _Context(1, 0)
#: FnProperty::kCPUPrioritized: a pool of threads of its own, which takes the operation of highest priority first.
_PRIORITIZED: Final = ctypes.c_int(3)
_PRIORITY_LIMIT: Final = 2**31 - 1

# An error is a `const dmlc::Error*`, of which the engine copies the std::runtime_error part only.
_libstdcxx: Final = ctypes.CDLL("libstdc++.so.6")
_construct_error: Final = _libstdcxx["_ZNSt13runtime_errorC1EPKc"]
_construct_error.argtypes, _construct_error.restype = [ctypes.c_void_p, ctypes.c_char_p], None
_destroy_error: Final = _libstdcxx["_ZNSt13runtime_errorD1Ev"]
_destroy_error.argtypes, _destroy_error.restype = [ctypes.c_void_p], None
#: More than any implementation's std::runtime_error takes.
_ERROR_BYTES: Final = 64

#: How often a thread of the engine that is about to return is looked after.
_LEAVING_SECONDS: Final = 0.0005


class Operation:
    """One operation, to be pushed once and, once it runs, to be completed exactly once.

    Args:
        run: Called with the operation once the array is ready. Must not wait; if it raises, the operation fails.
        skipped: Called instead of `run` where an earlier operation on the array failed.
        waits: Whether it does nothing but wait for the operations before it.
    """

    def __init__(self, run: Callable[["Operation"], None], skipped: Callable[[], None], *, waits: bool = False) -> None:
        self.waits = waits
        self._run = run
        self._skipped = skipped
        self._ran = False
        self._on_complete: _OnComplete | None = None
        """What completes it; None before it runs and after it was completed."""
        self._completing = threading.Lock()

    def complete(self, error: str | None = None) -> None:
        """Ends it, and lets the engine go on with the array. From any thread.

        Args:
            error: The text of the MXNetError that MXNet raises where the array, or what was computed from it, is read
                first; None where all went well.

        Raises:
            RuntimeError: It does not run, or was completed before. (The engine would not survive a second call.)
        """
        with self._completing:
            on_complete, self._on_complete = self._on_complete, None
        if on_complete is None:
            raise RuntimeError("an engine operation was completed that does not run, or was completed before")
        callback = _CompleteFunction(on_complete.callback)
        if error is None:
            callback(on_complete.engine, on_complete.parameter, None)
            return
        global _failed
        _failed = True
        storage = ctypes.create_string_buffer(_ERROR_BYTES)
        # MXNet's Python side makes the type from the word before the first colon, and C++ takes what is before a NUL.
        text = f"MXNetError: {error}".replace("\0", "")
        _construct_error(storage, text.encode(errors="replace"))
        try:
            callback(on_complete.engine, on_complete.parameter, ctypes.addressof(storage))
        finally:
            _destroy_error(storage)

    def _begin(self, on_complete: _OnComplete) -> None:
        self._ran = True
        self._on_complete = on_complete
        try:
            self._run(self)
        except BaseException as error:
            _log.exception("an engine operation failed as it was run")
            # It may have been completed before that.
            with contextlib.suppress(RuntimeError):
                self.complete(f"{type(error).__name__}: {error}")

    def _release(self) -> None:
        if not self._ran:
            self._skipped()


class _Registry:
    """The operations that the engine knows of, from their push to the run of their deleter."""

    def __init__(self) -> None:
        self._operations: dict[int, Operation] = {}
        self._tokens = itertools.count(1)
        self._emptied = Waiters()
        self._keepers: set[int] = set()
        """Threads that keep all others from adding operations."""
        self._opened = Waiters()
        self._ended = False
        self._pushing: dict[int, int] = {}
        """The threads that are about to give the engine an operation, by its number."""

    def __len__(self) -> int:
        return len(self._operations)

    def number(self) -> int:
        """A number by which the engine will call an operation."""
        return next(self._tokens)

    def add(self, token: int, operation: Operation) -> None:
        """Keeps an operation alive that is about to be pushed, until `remove`. `pushed` must follow.

        Raises:
            MXNetError: The process ends.
        """
        self._pushing[token] = threading.get_ident()
        # In this order: whoever closes looks for operations after that.
        self._operations[token] = operation
        while self._keepers or self._ended:
            if self._ended:
                self.remove(token)
                raise MXNetError("this process ends: nothing can be summed any more")
            if self._may_add():
                break
            self.remove(token)
            self._opened.wait_for(self._may_add)
            self._operations[token] = operation

    def pushed(self, token: int) -> None:
        """The engine has the operation, or has not taken it."""
        self._pushing.pop(token, None)

    def get(self, token: int) -> Operation:
        """The operation, or one that fails where the handler of a signal has ended its push: the engine may have it."""
        return self._operations.get(token) or Operation(_fail_interrupted, ignore)

    def all(self) -> list[Operation]:
        return list(self._operations.values())

    def remove(self, token: int) -> None:
        self._operations.pop(token, None)
        if self._emptied and len(self._operations) <= len(self._pushing):
            self._emptied.wake()

    def wait_until_empty(self, timeout: float) -> bool:
        return self._emptied.wait_for(lambda: not self._operations, timeout)

    def wait_until_released(self) -> None:
        """Waits for all operations but those that this thread is about to push.

        There are such where the handler of a signal waits, which has interrupted the push.
        """
        me = threading.get_ident()
        self._emptied.wait_for(lambda: len(self._operations) <= list(self._pushing.values()).count(me))

    def close(self) -> None:
        """Other threads than this one have to wait before they add anything, until `open`."""
        self._keepers.add(threading.get_ident())

    def open(self) -> None:
        self._keepers.discard(threading.get_ident())
        self._opened.wake()

    def end(self) -> None:
        """Nothing can be added any more."""
        self._ended = True
        self._opened.wake()

    def _may_add(self) -> bool:
        return self._ended or self._keepers <= {threading.get_ident()}


def _fail_interrupted(operation: Operation) -> None:
    operation.complete("the handler of a signal has interrupted the call that was to sum this")


def ignore() -> None:
    """Nothing is to be done: for an operation that may be skipped."""


_registry = _Registry()
_failed = False
"""Whether an operation was completed with an error."""


def push(array: Any, operation: Operation, *, priority: int = 0, always: bool = False, name: str = "psum") -> None:
    """Queues an operation that is to read and write one array in place.

    One array and no more: where two NDArrays given to one operation share their memory, as views and detached copies
    do, the engine would wait for itself for ever, and Python cannot tell whether they do.

    Args:
        array: A dense NDArray. Its memory is the operation's from `run` to `complete`.
        operation: Run once all earlier operations on the array have ended.
        priority: Among operations that are ready, the higher, the sooner.
        always: Whether it is also run where an earlier operation on the array failed. If it is then completed without
            an error, the earlier one's stays.
        name: What MXNet's profiler shows.

    Raises:
        MXNetError: The engine did not take it.
    """
    priority = max(-_PRIORITY_LIMIT, min(priority, _PRIORITY_LIMIT))
    _push(array.handle, operation, writes=True, priority=priority, always=always, name=name)


def call_when_ready(handle: ctypes.c_void_p, callback: Callable[[], None], *, writes: bool) -> None:
    """Has a callback called once all operations on an array have ended that were queued until now, well or not.

    Args:
        handle: The NDArray's.
        callback: Called from any thread. Must not wait or raise.
        writes: Whether to wait for those that read the array too.

    Raises:
        MXNetError: The engine did not take it.
    """

    def run(operation: Operation) -> None:
        operation.complete()
        callback()

    waiting = Operation(run, callback, waits=True)
    _push(handle, waiting, writes=writes, priority=_PRIORITY_LIMIT, always=False, name="psum wait")


def _push(
    handle: ctypes.c_void_p, operation: Operation, *, writes: bool, priority: int, always: bool, name: str
) -> None:
    token = _registry.number()
    read, written = (None, ctypes.byref(handle)) if writes else (ctypes.byref(handle), None)
    try:
        _registry.add(token, operation)
        check_call(
            QUICK.MXEnginePushAsyncND(
                _run,
                ctypes.c_void_p(token),
                _release,
                ctypes.byref(_CPU),
                read,
                int(not writes),
                written,
                int(writes),
                ctypes.byref(_PRIORITIZED),
                ctypes.c_int(priority),
                name.encode(),
                # The engine's own waiting for an array is such an operation.
                ctypes.c_bool(always),
            )
        )
    except BaseException:
        _registry.remove(token)
        raise
    finally:
        _registry.pushed(token)


def outstanding() -> int:
    """How many operations were pushed and not yet released by the engine."""
    return len(_registry)


def sums() -> int:
    """How many of them are sums, and do not only wait for some."""
    return sum(not operation.waits for operation in _registry.all())


def any_failed() -> bool:
    """Whether an operation was completed with an error, which MXNet then keeps for whoever reads or waits for all."""
    return _failed


def wait_until_released() -> None:
    """Waits until no operation is outstanding; each ends by itself, at the latest by its deadline."""
    _registry.wait_until_released()


def wait_until_idle(timeout: float) -> bool:
    """Waits until the engine has released every operation, and has left Python.

    Returns:
        False where that took more than timeout seconds.
    """
    deadline = time.monotonic() + timeout
    while _registry.wait_until_empty(max(0.0, deadline - time.monotonic())):
        if not _others_inside():
            return True
        if time.monotonic() >= deadline:
            return False
        # It has only to return, and there is nothing by which it could tell that it has.
        time.sleep(_LEAVING_SECONDS)
    return False


def hold(timeout: float) -> bool:
    """Waits until the engine is idle, and keeps other threads from giving it operations from then on.

    After that no thread of the engine enters or is in Python, so that the engine can be waited for with the
    interpreter's lock held, until `let_go`.

    Returns:
        False where it took more than timeout seconds: then nothing is held.
    """
    deadline = time.monotonic() + timeout
    while wait_until_idle(max(0.0, deadline - time.monotonic())):
        _registry.close()
        # Other threads may have pushed before that. While they are waited for, all may push: the ranks that this one
        # waits for may in turn wait for what another thread is about to push.
        if not _registry and not _others_inside():
            return True
        _registry.open()
    return False


def let_go() -> None:
    """Ends what `hold` began."""
    _registry.open()


def end(timeout: float) -> bool:
    """Waits until the engine is idle, and refuses all further operations if it is.

    Returns:
        False where that took more than timeout seconds.
    """
    if not hold(timeout):
        return False
    _registry.end()
    return True


def forget_all() -> None:
    """For a forked child, where the parent's operations do not exist."""
    global _registry, _failed
    _registry = _Registry()
    _failed = False


def _others_inside() -> bool:
    """Whether another thread is in a call of the engine's, or in a call into it that may call back.

    An operation is released before the calls that the engine has made for it return. On their way out they drop
    references, which may be the last ones to arrays: MXNet frees those without the interpreter's lock and takes that
    again afterwards. Whoever holds the lock and waits for the engine then would wait for ever.
    """
    me = threading.get_ident()
    for thread, innermost in sys._current_frames().items():
        frame: types.FrameType | None = None if thread == me else innermost
        while frame is not None:
            if frame.f_code in _INSIDE:
                return True
            frame = frame.f_back
    return False


# Their locals are numbers: nothing is dropped after their frames are gone, while a thread is still in them.
def _enter_run(*arguments: int) -> None:
    token, on_complete = arguments[-1], arguments[-2]
    # The engine's object is gone when this function returns: take a copy.
    _registry.get(token)._begin(_OnComplete.from_buffer_copy(_OnComplete.from_address(on_complete)))


def _enter_release(token: int) -> None:
    try:
        _registry.get(token)._release()
    except Exception:
        _log.exception("an engine operation failed as it was released")
    finally:
        _registry.remove(token)


_run: Final = _RunFunction(_enter_run)
_release: Final = _ReleaseFunction(_enter_release)
_INSIDE: Final = {function.__code__ for function in (_enter_run, _enter_release, Operation.complete)}
