"""Hearing of signals at once, in a thread, whatever the main thread does.

Python runs a signal's handler in the main thread, between two of its own instructions. Where that is in a long call
into C, the handler has to wait. But the number of the signal is written to a socket as soon as the signal comes.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Final

_listeners: Final[dict[int, Callable[[], None]]] = {}
"""What is called for which signal."""
_sender: socket.socket | None = None
"""Where Python writes the numbers of signals, once they are watched."""


def listen(number: signal.Signals, heed: Callable[[], None]) -> None:
    """Has something called in a thread when a signal comes that has a handler of Python's; once for each signal.

    Does nothing outside of the main thread, or where the program watches signals in the same way.
    """
    global _sender
    if threading.current_thread() is not threading.main_thread():
        return
    if _sender is None:
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        if (others := signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)) != -1:
            signal.set_wakeup_fd(others)
            receiver.close()
            sender.close()
            return
        _sender = sender
        threading.Thread(target=_heed, args=(receiver,), name="psum-signals", daemon=True).start()
    _listeners.setdefault(number, heed)


def forget(number: signal.Signals) -> None:
    """Nothing is called for this signal any more."""
    _listeners.pop(number, None)


def _heed(receiver: socket.socket) -> None:
    with receiver:
        while numbers := receiver.recv(64):
            for number in sorted(set(numbers)):
                if (heed := _listeners.get(number)) is not None:
                    # Each in its own thread: one may wait while the next signal comes.
                    threading.Thread(target=heed, name="psum-signal", daemon=True).start()


def _forked() -> None:
    global _sender
    _listeners.clear()
    if _sender is not None:
        if (others := signal.set_wakeup_fd(-1)) not in (-1, _sender.fileno()):
            # The program has taken it over.
            signal.set_wakeup_fd(others)
        _sender.close()
        _sender = None


os.register_at_fork(after_in_child=_forked)
