"""Learns of signals at once, in a thread, whatever the main thread does.

Python runs signal handlers in the main thread, between two bytecode instructions. During a long call into C the handler
has to wait, but Python writes the number of the signal to a socket as soon as the signal arrives.
"""

import atexit
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Final

_listeners: Final[dict[int, Callable[[], None]]] = {}
"""The function to call for each signal."""
_sender: socket.socket | None = None
"""The socket to which Python writes signal numbers. None until a signal is listened for."""


def listen(number: signal.Signals, call: Callable[[], None]) -> None:
    """Calls a function in a thread of its own whenever a signal arrives that has a Python handler.

    The first function for each signal counts. Does nothing outside the main thread, or if the program already uses
    Python's wakeup file descriptor.
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
        threading.Thread(target=_receive, args=(receiver,), name="psum-signals", daemon=True).start()
    _listeners.setdefault(number, call)


def forget(number: signal.Signals) -> None:
    """Stops listening for a signal."""
    _listeners.pop(number, None)


def _receive(receiver: socket.socket) -> None:
    with receiver:
        while numbers := receiver.recv(64):
            for number in sorted(set(numbers)):
                if (call := _listeners.get(number)) is not None:
                    # In its own thread: it may wait while the next signal arrives.
                    threading.Thread(target=call, name="psum-signal", daemon=True).start()


def _release() -> None:
    """Gives the file descriptor back, which ends the thread."""
    global _sender
    if _sender is None:
        return
    if (others := signal.set_wakeup_fd(-1)) not in (-1, _sender.fileno()):
        # The program has set a file descriptor of its own since.
        signal.set_wakeup_fd(others)
    _sender.close()
    _sender = None


def _forked() -> None:
    _listeners.clear()
    _release()


os.register_at_fork(after_in_child=_forked)
# Hooks that were registered later run before this one, and may still wait for sums.
atexit.register(_release)
