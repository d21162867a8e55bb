"""Operations on MXNet's engine that Python completes later, from any thread.

MXNet's Python interface has no such thing, but its C interface does (MXEnginePushAsyncND), and the engine orders the
operation among all others by the array that it writes. An operation goes through these calls, each at most once:

    push ── run ── complete ── release        its array became ready
    push ── skipped ────────── release        an operation before it on its array failed

`run` and `skipped` come from the engine's threads. Until `complete` the engine holds back all later users of the array.
"""

import contextlib
import ctypes
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from psum.mxnet._compat import MAJOR_VERSION, QUICK, check_call

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


class Operation:
    """One operation, to be pushed once and, once it runs, to be completed exactly once.

    Args:
        run: Called with the operation once the array is ready. Must not wait; if it raises, the operation fails.
        skipped: Called instead of `run` where an earlier operation on the array failed.
    """

    def __init__(self, run: Callable[["Operation"], None], skipped: Callable[[], None]) -> None:
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
        self._last_token = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._operations)

    def add(self, operation: Operation) -> int:
        """Keeps the operation alive; returns the number by which the engine will call it."""
        with self._changed:
            self._last_token += 1
            self._operations[self._last_token] = operation
            return self._last_token

    def get(self, token: int) -> Operation:
        return self._operations[token]

    def remove(self, token: int) -> None:
        with self._changed:
            self._operations.pop(token, None)
            if not self._operations:
                self._changed.notify_all()

    def wait_until_empty(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._operations, timeout)


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
    token = _registry.add(operation)
    try:
        check_call(
            QUICK.MXEnginePushAsyncND(
                _run,
                ctypes.c_void_p(token),
                _release,
                ctypes.byref(_CPU),
                None,
                0,
                ctypes.byref(array.handle),
                1,
                ctypes.byref(_PRIORITIZED),
                ctypes.c_int(max(-_PRIORITY_LIMIT, min(priority, _PRIORITY_LIMIT))),
                name.encode(),
                # The engine's own waiting for an array is such an operation.
                ctypes.c_bool(always),
            )
        )
    except BaseException:
        _registry.remove(token)
        raise


def outstanding() -> int:
    """How many operations were pushed and not yet released by the engine."""
    return len(_registry)


def any_failed() -> bool:
    """Whether an operation was completed with an error, which MXNet then keeps for whoever reads or waits for all."""
    return _failed


def wait_until_idle(timeout: float) -> bool:
    """Waits until the engine has released every operation; returns False where that took more than timeout seconds.

    After that no thread of the engine enters Python any more.
    """
    return _registry.wait_until_empty(timeout)


def forget_all() -> None:
    """For a forked child, where the parent's operations do not exist."""
    global _registry, _failed
    _registry = _Registry()
    _failed = False


@_RunFunction  # type: ignore[untyped-decorator]
def _run(*arguments: int) -> None:
    token, on_complete = arguments[-1], arguments[-2]
    # The engine's object is gone when this function returns: take a copy.
    _registry.get(token)._begin(_OnComplete.from_buffer_copy(_OnComplete.from_address(on_complete)))


@_ReleaseFunction  # type: ignore[untyped-decorator]
def _release(token: int) -> None:
    try:
        _registry.get(token)._release()
    except Exception:
        _log.exception("an engine operation failed as it was released")
    finally:
        _registry.remove(token)
