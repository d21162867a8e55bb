"""Ctrl-C while a call into MXNet waits for a sum.

Python acts on a signal only between two of its own instructions, and a wait in MXNet's engine is one call into C.
psum.mxnet.engine.waits lets signals through to MXNet's own functions for waiting. Some operators wait as well, to
learn a shape. There an interrupt would have no effect until the sum comes, which may need a rank that is stuck. So
here a thread hears of the signal at once. Where the main thread stays where it was, this thread ends the sums under
way: the wait fails, and Python raises the KeyboardInterrupt. It does not do so for a handler of the program's own: a
program that goes on after its handler needs the sums.
"""

import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Final

from psum.mxnet.engine import operations

#: How long the sums that an interrupted main thread waits for may take to come.
PATIENCE_SECONDS: Final = 2.0

#: How often a thread that is about to return from a hook is looked after.
_RETURN_SECONDS: Final = 0.001

_sender: socket.socket | None = None
"""Where Python writes the numbers of signals, once they are watched."""


def watch(end_sums: Callable[[], None]) -> None:
    """Watches for interrupts, once. Does nothing outside of the main thread, or where the program watches signals.

    Args:
        end_sums: Called from another thread to have every sum that is under way fail.
    """
    global _sender
    if _sender is not None or threading.current_thread() is not threading.main_thread():
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    if (others := signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)) != -1:
        signal.set_wakeup_fd(others)
        receiver.close()
        sender.close()
        return
    _sender = sender
    threading.Thread(target=_heed, args=(receiver, end_sums), name="psum-interrupts", daemon=True).start()


def forget() -> None:
    """To be called in a forked child: its signals are not for its parent."""
    global _sender
    if _sender is not None:
        signal.set_wakeup_fd(-1)
        _sender.close()
        _sender = None


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


def _heed(receiver: socket.socket, end_sums: Callable[[], None]) -> None:
    with receiver:
        _heed_all(receiver, end_sums)


def _heed_all(receiver: socket.socket, end_sums: Callable[[], None]) -> None:
    while numbers := receiver.recv(64):
        # A program that handles the signal by itself may want the step to be finished.
        if signal.SIGINT not in numbers or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            continue
        position = _main_position()
        if not operations.wait_until_idle(PATIENCE_SECONDS) and _main_position() == position:
            end_sums()


def _main_position() -> tuple[int, int] | None:
    """Which instruction the main thread is at."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return (id(frame), frame.f_lasti) if frame is not None else None
