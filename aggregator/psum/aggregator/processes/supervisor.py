"""The supervisor of an aggregator that has several processes. It serves no workers itself.

It starts fresh interpreters, starts one again that has ended, and ends all. It answers probes and scrapes for all of
them. If it is killed, its processes end too.
"""

import asyncio
import contextlib
import logging
import os
import pathlib
import signal
import time
from collections.abc import Sequence
from typing import Any, Final

from psum.aggregator.announcement import announce as write_announcement
from psum.aggregator.observe.logging import set_up_logging
from psum.aggregator.parent import Parent
from psum.aggregator.processes.child import Child, Children
from psum.aggregator.processes.orders import ALL_SERVE, SOME_MISSING, Order
from psum.aggregator.processes.ports import Ports
from psum.aggregator.processes.restarts import Restarts
from psum.aggregator.processes.shared_budget import Reservations
from psum.aggregator.settings import Settings
from psum.runtime import raise_descriptor_limit
from psum.wire.errors import ConfigurationError

_log = logging.getLogger(__name__)

#: How much longer than the grace period a process may take to end, before it is killed.
_ENDING_SECONDS: Final = 8.0

#: How long a process may take to start, on a machine that is very busy.
_STARTING_SECONDS: Final = 120.0

#: How long a process may take to take note of something.
_TELLING_SECONDS: Final = 1.0


def supervise(
    settings: Settings, *, announce: pathlib.Path | None = None, parent: Parent | None = None
) -> signal.Signals:
    """Runs an aggregator of several processes until SIGTERM or SIGINT; a second signal kills all of them at once.

    Args:
        settings: The settings of the whole aggregator.
        announce: A file to which the first process's addresses are written as soon as all processes accept connections.
        parent: The process with which this one ends, if there is one.

    Returns:
        The first signal.

    Raises:
        ConfigurationError: A process cannot serve at the start, or a file cannot be written.
    """
    raise_descriptor_limit()
    set_up_logging(settings)
    for text in settings.warnings():
        _log.warning("%s", text)
    with Ports() as ports:
        return asyncio.run(_Supervisor(settings, ports.reserve(settings), parent).run(announce))


class _Supervisor:
    """The processes of an aggregator.

    Args:
        settings: The settings of the whole aggregator.
        each: The settings of each process.
        parent: The process with which this one ends, if there is one.
    """

    def __init__(self, settings: Settings, each: Sequence[Settings], parent: Parent | None) -> None:
        self._settings = settings
        self._parent = parent
        self._each = each
        self._reservations = Reservations.make(len(each))
        self._children = Children()
        self._running: list[Child | None] = [None] * len(each)
        self._restarts = [Restarts() for _ in each]
        self._stopping = asyncio.Event()
        self._signal = signal.SIGTERM

    async def run(self, announce: pathlib.Path | None) -> signal.Signals:
        """Starts all processes, and keeps them running until a signal. Returns that."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._children.reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        async with contextlib.AsyncExitStack() as stack:
            # HTTP ends last, because probes are answered while rounds are finished.
            await self._serve_http(stack)
            keeping: list[asyncio.Task[None]] = []
            stack.callback(lambda: [task.cancel() for task in keeping])
            stack.push_async_callback(self._end)
            await self._start()
            await self._tell()
            keeping += [asyncio.create_task(self._keep(number)) for number in range(len(self._each))]
            if announce is not None and not self._stopping.is_set():
                write_announcement(announce, self._each[0].listen)
            stopping = asyncio.create_task(self._stopping.wait())
            # Before that, a task that keeps a process ends only by a bug.
            await asyncio.wait((stopping, *keeping), return_when=asyncio.FIRST_COMPLETED)
            for task in keeping:
                if task.done():
                    task.result()
            if self._parent is not None and self._signal is signal.SIGTERM:
                await self._parent.ended()
        return self._signal

    async def _serve_http(self, stack: contextlib.AsyncExitStack) -> None:
        self._view = None
        if not self._settings.http:
            return
        # Imported only if it is needed, because aiohttp takes long to import.
        from psum.aggregator.observe.http import Http
        from psum.aggregator.processes.whole_view import WholeView

        self._view = WholeView(
            self._settings,
            lambda: self._running,
            restarts=lambda: sum(restarts.count for restarts in self._restarts),
            draining=self._stopping.is_set,
        )
        http = Http(self._view)
        address = await http.start(self._settings.http)
        stack.push_async_callback(http.close)
        _log.info("status page, metrics and probes at http://%s/", address)

    async def _start(self) -> None:
        """Starts all processes, and waits until each serves, or until a signal.

        Raises:
            ConfigurationError: One cannot.
        """
        for number in range(len(self._each)):
            self._launch(number)
        children = [child for child in self._running if child is not None]
        mistakes: dict[str, None] = {}
        for child in children:
            await _serving(child, self._stopping)
            if child.ended.done() and not self._stopping.is_set():
                await child.close()
                mistakes |= dict.fromkeys(child.mistakes or (f"process {child.number} {_how(child.ended.result())}",))
        if mistakes:
            raise ConfigurationError(mistakes)

    def _launch(self, number: int) -> Child:
        order = Order(
            self._each[number],
            number,
            [settings.listen for settings in self._each],
            self._reservations.descriptor,
            os.getpid(),
        )
        self._running[number] = child = self._children.start(order)
        return child

    async def _keep(self, number: int) -> None:
        """Starts a process again whenever it has ended."""
        restarts = self._restarts[number]
        while not self._stopping.is_set():
            if (child := self._running[number]) is None:
                try:
                    child = self._launch(number)
                except OSError as error:
                    pause = restarts.pause(0.0)
                    _log.error("process %d cannot be started (%s); tried again in %g s", number, error, pause)
                    await asyncio.sleep(pause)
                    continue
            await _serving(child, self._stopping)
            await self._tell()
            code = await child.ended
            await child.close()
            if self._stopping.is_set():
                return
            self._running[number] = None
            self._reservations[number] = 0
            await self._tell()
            if self._view is not None:
                self._view.end(number)
            pause = restarts.pause(time.monotonic() - child.started)
            _log.error(
                "process %d %s%s; it is started again%s, and its workers come back to it",
                number,
                _how(code),
                f" ({'; '.join(child.mistakes)})" if child.mistakes else "",
                f" in {pause:g} s" if pause else "",
            )
            await asyncio.sleep(pause)

    async def _tell(self) -> None:
        """Tells all processes whether all serve, for gRPC's health service."""
        serving = [child for child in self._running if child is not None and child.serving.is_set()]
        news = ALL_SERVE if len(serving) == len(self._each) else SOME_MISSING
        # One that hangs is told when it answers again; in place of one that ends, its next process is told.
        await asyncio.gather(*(child.tell(news, _TELLING_SECONDS) for child in serving), return_exceptions=True)

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            if self._parent is not None and number is signal.SIGTERM:
                return
            for child in self._running:
                if child is not None:
                    child.signal(signal.SIGKILL)
            os._exit(128 + number)
        _log.info("stopping on %s", number.name)
        self._signal = number
        self._stopping.set()

    async def _end(self) -> None:
        """Ends all processes: each finishes its open rounds within the grace period."""
        self._stopping.set()
        running = [child for child in self._running if child is not None and not child.ended.done()]
        for child in running:
            child.signal(signal.SIGTERM)
        # A process that does not serve yet has no open rounds.
        grace = self._settings.grace if any(child.serving.is_set() for child in running) else 0.0
        patience = grace + _ENDING_SECONDS
        if running:
            await asyncio.wait([child.ended for child in running], timeout=patience)
        for child in running:
            if not child.ended.done():
                _log.error("process %d did not end within %g s and is killed", child.number, patience)
                child.signal(signal.SIGKILL)
                await child.ended


async def _serving(child: Child, stopping: asyncio.Event) -> None:
    """Waits until a process serves or has ended, or all are to end. A process that takes too long is killed."""
    serving, ending = (asyncio.create_task(event.wait()) for event in (child.serving, stopping))
    waiting: set[asyncio.Future[Any]] = {serving, ending, child.ended}
    done, _ = await asyncio.wait(waiting, timeout=_STARTING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    ending.cancel()
    if not done:
        _log.error("process %d does not serve %g s after its start, and is killed", child.number, _STARTING_SECONDS)
        child.signal(signal.SIGKILL)
        await asyncio.wait((child.ended,))


def _how(code: int) -> str:
    """How a process has ended."""
    if code >= 0:
        return f"ended with status {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
