"""Operations on MXNet's engine that Python completes later, from any thread.

The engine orders an operation among all others by the array that it writes. From its push to its release it goes
through one of these rows:

    push ── run ── complete ── release        its array became ready
    push ── skipped ────────── release        an earlier operation on its array failed

The engine's threads call `run` and `skipped`. Until `complete` the engine holds back all later users of the array.
"""

import ctypes
import logging
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from psum.mxnet.compat import QUICK, mx
from psum.mxnet.engine import interface
from psum.mxnet.engine.error_room import ErrorRoom
from psum.mxnet.engine.registry import Registry

_log = logging.getLogger(__name__)


#: How often to check whether a thread of the engine has returned.
_LEAVING_SECONDS: Final = 0.0005


class EngineOperation:
    """One operation. Push it and, once it runs, complete it exactly once. After its release it may be pushed again.

    A subclass says what it does.
    """

    __slots__ = ("_callback", "_engine", "_parameter", "_ran", "_token")

    waits = False
    """Whether the operation is no sum: it only waits for the operations before it, or makes room for errors."""

    def __init__(self) -> None:
        self._token = 0
        """The number of its last run."""
        self._ran = False

    def run(self) -> None:
        """The array is ready. It must not wait. If it raises, the operation fails."""
        raise NotImplementedError

    def skipped(self) -> None:
        """An earlier operation on the array failed, and this one will not run."""

    def released(self) -> None:
        """The engine no longer needs it. Nothing of this operation follows."""

    def complete(self, error: str | None = None) -> None:
        """Ends the operation, and lets the engine go on with the array. From any thread.

        The engine may release it before this returns.

        Args:
            error: The text of an MXNetError. MXNet raises it for the first reader of the array or of what was computed
                from it. None if all went well.

        Raises:
            RuntimeError: It does not run, or was completed before. (The engine would not survive a second call.)
        """
        try:
            _running.remove(self._token)
        except KeyError:
            raise RuntimeError("an engine operation was completed that does not run, or was completed before") from None
        if error is not None:
            global _failed
            _failed = _failed or not self.waits
            _room.add()
        interface.complete(self._callback, self._engine, self._parameter, error)

    def _begin(self, token: int, on_complete: int) -> None:
        self._ran = True
        self._token = token
        # Copied, because the engine's object is gone when this function returns.
        self._callback, self._engine, self._parameter = interface.OnComplete.from_address(on_complete)[:]
        _running.add(token)
        try:
            self.run()
        except BaseException as error:
            _log.exception("an engine operation failed when it was run")
            # If it was completed before it raised, it may run again by now.
            if token in _running:
                self.complete(f"{type(error).__name__}: {error}")

    def _release(self) -> None:
        ran, self._ran = self._ran, False
        try:
            if not ran:
                self.skipped()
        finally:
            self.released()


class Operation(EngineOperation):
    """An operation that calls functions. Push it once.

    Args:
        run: Called with the operation once the array is ready. It must not wait. If it raises, the operation fails.
        skipped: Called instead of `run` if an earlier operation on the array failed.
        waits: See EngineOperation.
    """

    def __init__(self, run: Callable[["Operation"], None], skipped: Callable[[], None], *, waits: bool = False) -> None:
        super().__init__()
        self.waits = waits
        self._run = run
        self._skipped = skipped

    def run(self) -> None:
        """See EngineOperation."""
        self._run(self)

    def skipped(self) -> None:
        """See EngineOperation."""
        self._skipped()


def _fail_interrupted(operation: Operation) -> None:
    operation.complete("the handler of a signal interrupted the call that was to sum this")


def ignore() -> None:
    """Does nothing: for operations that may be skipped."""


_registry: Registry[EngineOperation] = Registry()
_running: set[int] = set()
"""The numbers of those that run and were not completed."""
_room: Final = ErrorRoom()
_failed = False
"""Whether an operation was completed with an error."""


def push(
    array: Any, operation: EngineOperation, *, priority: int = 0, always: bool = False, name: bytes = b"psum"
) -> None:
    """Queues an operation that reads and writes one array in place.

    It takes one array only. Views and detached copies share their memory, and the engine would deadlock if two NDArrays
    of one operation did. Python cannot tell whether they do.

    Args:
        array: A dense NDArray. Its memory is the operation's from `run` to `complete`.
        operation: Runs once all earlier operations on the array have ended.
        priority: Higher values go first among operations that are ready.
        always: Whether it runs even if an earlier operation on the array failed. If it is then completed without an
            error, the earlier error stays.
        name: What MXNet's profiler shows.

    Raises:
        MXNetError: The engine did not take it.
    """
    if not -interface.PRIORITY_LIMIT <= priority <= interface.PRIORITY_LIMIT:
        priority = max(-interface.PRIORITY_LIMIT, min(priority, interface.PRIORITY_LIMIT))
    # Here the program's threads push sums. A thread of the engine must not wait for the engine.
    if _room.lacks(len(_registry) + 1):
        _room.grow(len(_registry) + 1, _fail)
    _push(array.handle, operation, writes=True, priority=priority, always=always, name=name)


def call_when_ready(handle: ctypes.c_void_p, callback: Callable[[], None], *, writes: bool) -> None:
    """Calls back once all operations that are now queued on an array have succeeded or failed.

    Args:
        handle: The NDArray's.
        callback: Called from any thread. It must not wait or raise.
        writes: Whether to wait for operations that only read the array too.

    Raises:
        MXNetError: The engine did not take it.
    """

    def run(operation: Operation) -> None:
        operation.complete()
        callback()

    waiting = Operation(run, callback, waits=True)
    _push(handle, waiting, writes=writes, priority=interface.PRIORITY_LIMIT, always=False, name=b"psum wait")


def _push(
    handle: ctypes.c_void_p,
    operation: EngineOperation,
    *,
    writes: bool,
    priority: int,
    always: bool,
    name: bytes,
    at_once: bool = False,
) -> None:
    token = _registry.number()
    try:
        _registry.add(token, operation)
        interface.push(
            _run, _release, token, handle, writes=writes, priority=priority, always=always, name=name, at_once=at_once
        )
    except BaseException:
        _registry.remove(token)
        raise
    finally:
        _registry.pushed(token)


def _fail(count: int) -> None:
    """Has operations on an array of their own fail, takes their errors from MXNet, and waits for all that.

    One thread of the engine pushes and runs them. No signal interrupts it between an error and its taking, and threads
    do not take turns at the interpreter for each operation.
    """
    ended: Future[None] = Future()

    def run(operation: Operation) -> None:
        problem: BaseException | None = None
        try:
            _fail_here(count)
        except BaseException as error:
            problem = error
        operation.complete()
        if problem is None:
            ended.set_result(None)
        else:
            ended.set_exception(problem)

    array = mx.nd.empty((1,), ctx=mx.cpu())
    growing = Operation(run, ignore, waits=True)
    _push(array.handle, growing, writes=True, priority=interface.PRIORITY_LIMIT, always=False, name=b"psum room")
    ended.result()


def _fail_here(count: int) -> None:
    """Has operations fail one after the other in this thread, and takes their errors from MXNet."""
    array = mx.nd.empty((1,), ctx=mx.cpu())
    read = QUICK["MXNDArrayWaitToRead"]

    def run(operation: Operation) -> None:
        operation.complete("makes room for errors")

    for _ in range(count):
        failing = Operation(run, ignore, waits=True)
        _push(array.handle, failing, writes=True, priority=0, always=False, name=b"psum room", at_once=True)
        # Raises the error, and does not wait: the operation has ended.
        read(array.handle)


def outstanding() -> int:
    """Returns how many operations were pushed and not yet released by the engine."""
    return len(_registry)


def sums() -> int:
    """Returns how many of them are sums, and not only waits for sums."""
    return sum(not operation.waits for operation in _registry.all())


def any_failed() -> bool:
    """Returns whether an operation was completed with an error. MXNet keeps such an error until a reader gets it."""
    return _failed


def wait_until_released() -> None:
    """Waits until no operation is outstanding. Each ends by itself, by its deadline at the latest."""
    _registry.wait_until_released()


def wait_until_idle(timeout: float) -> bool:
    """Waits until the engine has released every operation, and none of its threads is in Python.

    Returns:
        False if that took more than timeout seconds.
    """
    deadline = time.monotonic() + timeout
    while _registry.wait_until_empty(max(0.0, deadline - time.monotonic())):
        if not _others_inside():
            return True
        if time.monotonic() >= deadline:
            return False
        # The thread only has to return. Nothing announces that it has.
        time.sleep(_LEAVING_SECONDS)
    return False


def hold(timeout: float) -> bool:
    """Waits until the engine is idle, and keeps other threads from giving it operations until `let_go`.

    Meanwhile no thread of the engine is in Python or enters it. So the caller may wait for the engine while it holds
    the interpreter's lock.

    Returns:
        False if it took more than timeout seconds. Then nothing is held.
    """
    deadline = time.monotonic() + timeout
    while wait_until_idle(max(0.0, deadline - time.monotonic())):
        _registry.close()
        # Other threads may have pushed before that. All may push while this waits for them: other ranks may need what
        # another thread is about to push.
        if not _registry and not _others_inside():
            return True
        _registry.open()
    return False


def let_go() -> None:
    """Ends what `hold` began."""
    _registry.open()


def end(timeout: float) -> bool:
    """Waits until the engine is idle, and then refuses all further operations.

    Returns:
        False if that took more than timeout seconds. Then nothing is refused.
    """
    if not hold(timeout):
        return False
    _registry.end()
    return True


def forget_all() -> None:
    """Forgets all operations. For a forked child, where the parent's operations do not exist."""
    global _registry, _failed
    _registry = Registry()
    _running.clear()
    _failed = False
    _room.forget_growth()


def _operation(token: int) -> EngineOperation:
    """Returns the operation, or one that fails if a signal handler ended its push: the engine may have it anyway."""
    return _registry.get(token) or Operation(_fail_interrupted, ignore)


def _others_inside() -> bool:
    """Returns whether another thread is in a call from the engine, or in a call into it that may call back.

    The engine releases an operation before its calls for that operation return. On their way out these calls drop
    references, possibly the last ones to arrays. MXNet frees those arrays without the interpreter's lock and then takes
    the lock again: a thread that held the lock and waited for the engine would deadlock.
    """
    me = threading.get_ident()
    for thread, innermost in sys._current_frames().items():
        frame: types.FrameType | None = None if thread == me else innermost
        while frame is not None:
            if frame.f_code in _INSIDE:
                return True
            frame = frame.f_back
    return False


class _Visits(threading.local):
    """What a thread remembers of its calls into Python."""

    stays = False
    """Whether the thread keeps its state."""


_visits: Final = _Visits()


def _keep_state() -> None:
    """Makes Python keep the state of this thread, which is one of the engine's, for its next calls.

    Otherwise Python makes a state for each call of a thread that it has not started, and drops it when the call
    returns. With the state it maps and unmaps memory for frames, which takes longer than all else in a call. The
    engine's threads are few, and last as long as the process. In a forked child they are others, with other states.
    """
    _visits.stays = True
    ctypes.pythonapi.PyGILState_Ensure()


# No local of these two refers to an operation. It may be the last reference, and Python drops a frame's locals only
# after _others_inside has stopped seeing the frame.
def _enter_run(*arguments: int) -> None:
    if not _visits.stays:
        _keep_state()
    token, on_complete = arguments[-1], arguments[-2]
    _operation(token)._begin(token, on_complete)


def _enter_release(token: int) -> None:
    if not _visits.stays:
        _keep_state()
    try:
        _operation(token)._release()
    except Exception:
        _log.exception("an engine operation failed when it was released")
    finally:
        _registry.remove(token)


_run: Final = interface.RunFunction(_enter_run)
_release: Final = interface.ReleaseFunction(_enter_release)
_INSIDE: Final = {function.__code__ for function in (_enter_run, _enter_release, EngineOperation.complete, _fail)}
