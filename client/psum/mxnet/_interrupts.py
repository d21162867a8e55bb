"""Ctrl-C while MXNet waits for a sum.

Python acts on a signal only between two of its own instructions, and a wait in MXNet's engine is one call into C. So an
interrupt would have no effect until the sum comes, which may need a rank that is stuck. Here a thread hears of the
signal at once. Where the main thread stays where it was, it ends the sums under way: the wait fails, and Python raises
the KeyboardInterrupt.
"""

import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Final

from psum.mxnet import _engine

#: How long the sums that an interrupted main thread waits for may take to come.
PATIENCE_SECONDS: Final = 2.0

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


def _heed(receiver: socket.socket, end_sums: Callable[[], None]) -> None:
    with receiver:
        _heed_all(receiver, end_sums)


def _heed_all(receiver: socket.socket, end_sums: Callable[[], None]) -> None:
    while numbers := receiver.recv(64):
        # A program that handles the signal by itself may want the step to be finished.
        if signal.SIGINT not in numbers or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            continue
        position = _main_position()
        if not _engine.wait_until_idle(PATIENCE_SECONDS) and _main_position() == position:
            end_sums()


def _main_position() -> tuple[int, int] | None:
    """Which instruction the main thread is at."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return (id(frame), frame.f_lasti) if frame is not None else None
