"""Signals of the process that runs tests or scripts, and what its children inherit."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


def heed_signals() -> None:
    """Give processes that are started from now on the default handling of signals that end a process.

    Children inherit ignored signals, as of a process under nohup or in the background of a shell script. They could not
    be interrupted, and Python would not raise KeyboardInterrupt in them. Children do not inherit handlers, so this sets
    handlers that do nothing.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@contextlib.contextmanager
def interrupts_raise() -> Iterator[None]:
    """Make SIGINT raise KeyboardInterrupt in the main thread, however this process was started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def signalled(handle: Callable[[], object]) -> Iterator[None]:
    """Send a signal to this thread soon, with a handler for it. It is the main thread, where handlers run."""
    before = signal.signal(signal.SIGUSR1, lambda *_: handle())
    timer = threading.Timer(0.1, signal.pthread_kill, [threading.get_ident(), signal.SIGUSR1])
    timer.start()
    try:
        yield
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
