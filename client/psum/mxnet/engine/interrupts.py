"""Ctrl-C while a call into MXNet waits for a sum.

Python acts on a signal only between two of its instructions, and a wait in MXNet's engine is one call into C. The
module waits makes MXNet's own functions for waiting interruptible. Some operators wait too, to learn a shape. There an
interrupt would have no effect until the sum comes, which may need a rank that is stuck. So a thread hears of the signal
at once. If the main thread does not move on, this thread fails the sums under way: the wait ends, and Python raises the
KeyboardInterrupt. It does not do so if the program handles the signal itself, since it may need the sums afterwards.
"""

import functools
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Final

from psum.client.wakeup import forget as forget_signal
from psum.client.wakeup import listen
from psum.mxnet.engine import operations, waits

#: How long the main thread goes on waiting for sums after an interrupt.
PATIENCE_SECONDS: Final = 2.0

#: How often to check whether a thread has returned from a hook.
_RETURN_SECONDS: Final = 0.001


def watch(end_sums: Callable[[], None]) -> None:
    """Watches for interrupts, once. Does nothing outside of the main thread, or where the program watches signals.

    Args:
        end_sums: Called from another thread to have every sum that is under way fail.
    """
    listen(signal.SIGINT, functools.partial(_heed, end_sums))


def forget() -> None:
    """Watches no longer."""
    forget_signal(signal.SIGINT)


def raise_after(function: Callable[[], None], error: BaseException) -> None:
    """Raises an error in the main thread, which calls this, as soon as it has returned from a function that it is in.

    For hooks of Python's, whose own errors are lost.
    """
    thread, code = threading.get_ident(), function.__code__
    # By a signal, which interrupts whatever the thread waits for by then.
    handler = signal.getsignal(signal.SIGINT)

    def raise_it(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
        raise error

    def send() -> None:
        while _is_in(thread, code):
            time.sleep(_RETURN_SECONDS)
        signal.pthread_kill(thread, signal.SIGINT)

    signal.signal(signal.SIGINT, raise_it)
    threading.Thread(target=send, name="psum-raises", daemon=True).start()


def _is_in(thread: int, code: types.CodeType) -> bool:
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def _heed(end_sums: Callable[[], None]) -> None:
    # A program that handles the signal by itself may want the step to be finished.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    position = _main_position()
    if position is not None and waits.is_interruptible(position[0]):
        # Python raises the KeyboardInterrupt there. Or it has done so before this thread could run, and the program
        # waits for something else by now.
        return
    if not operations.wait_until_idle(PATIENCE_SECONDS) and _main_position() == position:
        end_sums()


def _main_position() -> tuple[types.FrameType, int] | None:
    """Which instruction the main thread is at.

    The frame itself and not its id: while somebody holds it, no later call can have a frame at the same address.
    """
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return (frame, frame.f_lasti) if frame is not None else None
