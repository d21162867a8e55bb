"""Signals of the process that runs tests or scripts, and what the processes that it starts inherit of them."""

import contextlib
import signal
from collections.abc import Iterator


def heed_signals() -> None:
    """Gives processes that are started from now on the default for the signals that ask a process to end.

    A process that was started with one of them ignored (in the background of a shell script, under nohup) hands that
    on: a child could not be interrupted, and Python would not raise KeyboardInterrupt in it. A handler is not handed
    on. This process still does nothing on these signals.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@contextlib.contextmanager
def interrupts_raise() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt in the main thread, however this process was started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
