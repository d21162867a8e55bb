"""Run a fleet of processes with a display and a guard, and end all of them."""

import asyncio
import contextlib
import pathlib
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from psum.cli.launch.display import Display
from psum.cli.launch.guard import Guard
from psum.cli.launch.orphans import reap
from psum.wire.errors import PsumError


class LaunchError(PsumError):
    """A process of the job could not be started.

    Attributes:
        status: The exit status.
    """

    def __init__(self, text: str, status: int = 1) -> None:
        self.status = status
        super().__init__(text)


class Fleet(Protocol):
    """Processes that are started, watched and ended together."""

    async def run(self) -> int:
        """Start all processes, wait until they are done or one has failed, and return the exit status.

        Raises:
            LaunchError: A process could not be started.
        """

    async def end(self, hurry: asyncio.Event) -> None:
        """End all processes that still run, without a grace period once hurry is set."""

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the workers."""


async def supervise(make: Callable[[Display, Guard, pathlib.Path], Fleet], *, quiet: bool = False) -> int:
    """Run a fleet to its end, report failures, and leave no process running.

    SIGINT, SIGTERM and SIGHUP end everything. A second signal skips the grace period. SIGUSR1 and SIGUSR2, with which
    schedulers announce the end of a job's time, are passed on. As process 1, this also waits for orphans.

    Args:
        make: Makes the fleet from the display for its output, the guard that ends it if this process is killed, and a
            directory that exists as long as the fleet and that other users cannot read.
        quiet: Whether to show the output only if the fleet fails.

    Returns:
        The fleet's exit status, or 128 + the number of the signal that ended everything.
    """
    stopped: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    hurry = asyncio.Event()

    def stop(number: signal.Signals) -> None:
        if stopped.done():
            hurry.set()
        else:
            stopped.set_result(128 + number)
            display.note(f"ending all processes on {number.name}")

    with (
        Display(lost=lambda: stop(signal.SIGPIPE), held=quiet) as display,
        Guard() as guard,
        tempfile.TemporaryDirectory(prefix="psum-") as directory,
        contextlib.ExitStack() as stack,
        _signals_call((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), stop),
    ):
        fleet = make(display, guard, pathlib.Path(directory))
        stack.enter_context(_signals_call((signal.SIGUSR1, signal.SIGUSR2), fleet.signal))
        stack.enter_context(_signals_call((signal.SIGCHLD,), lambda _: reap(guard.children)))
        work = asyncio.create_task(fleet.run())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
            status = stopped.result() if stopped.done() else work.result()
            if status != 0:
                display.release()
            return status
        except LaunchError as error:
            display.release()
            display.note(str(error))
            return error.status
        finally:
            work.cancel()
            await asyncio.wait((work,))
            await fleet.end(hurry)


@contextlib.contextmanager
def _signals_call(numbers: Sequence[signal.Signals], call: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call a function on signals, except on those that the process was started to ignore. SIGCHLD is never ignored."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in numbers}
    heeded = [number for number, handler in before.items() if handler is not signal.SIG_IGN or number is signal.SIGCHLD]
    for number in heeded:
        loop.add_signal_handler(number, call, number)
    try:
        yield
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)
            # The loop has restored the default handler instead. None means that the handler is not Python's.
            if (handler := before[number]) is not None:
                signal.signal(number, handler)
