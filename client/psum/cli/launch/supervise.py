"""What runs processes on this machine has a display, a guard and an end, whatever ends it."""

import asyncio
import contextlib
import pathlib
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from psum.cli.launch.display import Display
from psum.cli.launch.guard import Guard
from psum.cli.launch.orphans import bury
from psum.wire.errors import PsumError


class LaunchError(PsumError):
    """A process of the job could not be started.

    Attributes:
        status: The status to exit with.
    """

    def __init__(self, text: str, status: int = 1) -> None:
        self.status = status
        super().__init__(text)


class Fleet(Protocol):
    """Processes that are started, watched and ended together."""

    async def run(self) -> int:
        """Starts all, waits until they have done their work or one has failed, and returns the status to exit with.

        Raises:
            LaunchError: A process could not be started.
        """

    async def end(self, hurry: asyncio.Event) -> None:
        """Ends what still runs, without a grace period once hurry is set."""

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the processes that do the work."""


async def supervise(make: Callable[[Display, Guard, pathlib.Path], Fleet], *, quiet: bool = False) -> int:
    """Runs processes to their end, says what went wrong, and leaves nothing running.

    SIGINT, SIGTERM and SIGHUP end everything; a second one does not wait for the grace period. SIGUSR1 and SIGUSR2, by
    which schedulers announce the end of a program's time, are passed on. As process 1 it waits for orphans, too.

    Args:
        make: Makes the fleet, given where its output is shown, what ends it if this process is killed, and a directory
            that lasts as long as the fleet and that other users cannot read.
        quiet: What the processes write is shown only if they fail.

    Returns:
        What the fleet returned, or 128 + the number of the signal that ended everything.
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
        stack.enter_context(_signals_call((signal.SIGCHLD,), lambda _: bury(guard.children)))
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
    """Has signals call something, unless the process was started to ignore them; SIGCHLD in any case."""
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
            # The loop leaves the default behind. None: whoever set it was not Python.
            if (handler := before[number]) is not None:
                signal.signal(number, handler)
