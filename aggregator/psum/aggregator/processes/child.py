"""A process of an aggregator as its supervisor sees it, from its start to its end."""

import asyncio
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from psum.aggregator.processes.orders import Fails, Order, Serves, packed, receive

_MODULE: Final = "psum.aggregator.processes.process"

#: How many questions may wait for answers. A process that leaves so many unanswered is stopped or hangs.
_MOST_QUESTIONS: Final = 16


class Child:
    """A fresh interpreter that serves as one process of the aggregator.

    Args:
        order: What it shall be.

    Attributes:
        number: Its number, from 0.
        serving: Whether it accepts workers.
        mistakes: Why it cannot serve, if it has said so.
        ended: Done with its return code when it has ended; see Children.
    """

    def __init__(self, order: Order) -> None:
        self.number = order.number
        self.serving = asyncio.Event()
        self.mistakes: tuple[str, ...] = ()
        self.started = time.monotonic()
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = loop.create_future()
        self._answers: deque[asyncio.Future[Any]] = deque()
        """The answers that are still to come, in the order of the questions."""
        self._news: str | None = None
        """What it is told as soon as it answers again, None if it was told everything."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), order.reservations),
                # Ctrl-C in a terminal then reaches only the supervisor, which ends its processes in order.
                start_new_session=True,
            )
        self._listening = loop.create_task(self._listen(ours, order))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it still runs."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, code: int) -> None:
        """Notes that it has ended, and was waited for."""
        # Otherwise Popen would wait for it too.
        self._process.returncode = code
        self.ended.set_result(code)

    async def ask(self, question: str, patience: float) -> Any:
        """Its answer to a question of orders.py.

        Raises:
            TimeoutError: It does not answer within so many seconds, or has not answered many earlier questions. Then it
                is not asked: the questions would pile up.
            ConnectionError: It ends.
        """
        if not self.serving.is_set() or self._listening.done():
            raise ConnectionError("it does not serve")
        if len(self._answers) >= _MOST_QUESTIONS:
            raise TimeoutError(f"it has not answered {len(self._answers)} earlier questions")
        answer = self._put(question)
        async with asyncio.timeout(patience):
            return await answer

    async def tell(self, news: str, patience: float) -> None:
        """Tells it something. Later news replace earlier ones that it has not been told yet.

        Raises:
            TimeoutError: It does not answer. It is told as soon as it does.
            ConnectionError: It ends.
        """
        self._news = news if len(self._answers) >= _MOST_QUESTIONS else None
        await self.ask(news, patience)

    async def close(self) -> None:
        """Closes the connection of a process that has ended, after everything that it said was heard."""
        await self._listening

    def _put(self, question: str) -> asyncio.Future[Any]:
        """Sends a question; returns its answer."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Answers come in the order of the questions, also those that nobody waits for any more.
        self._answers.append(answer)
        self._writer.write(packed(question))
        return answer

    async def _listen(self, connection: socket.socket, order: Order) -> None:
        reader, self._writer = await asyncio.open_connection(sock=connection)
        try:
            self._writer.write(packed(order))
            while True:
                match await receive(reader):
                    case Serves():
                        self.serving.set()
                    case Fails() as fails:
                        self.mistakes = tuple(fails.mistakes)
                    case answer:
                        if not (waiting := self._answers.popleft()).done():
                            waiting.set_result(answer)
                        if self._news is not None:
                            news, self._news = self._news, None
                            self._put(news)
        except (EOFError, ConnectionError):
            pass
        finally:
            self.serving.clear()
            for waiting in self._answers:
                if not waiting.done():
                    waiting.set_exception(ConnectionError("it has ended"))
            self._writer.close()


def _environment() -> Mapping[str, str]:
    # The new interpreter finds the modules where this one does. Its own path must not begin with the working directory,
    # which may have files that are called like modules.
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry and pathlib.Path(entry).is_dir())
    return {**os.environ, "PYTHONPATH": path}


class Children:
    """Waits for processes that have ended: those of the aggregator, and orphans if this is process 1 of a container."""

    def __init__(self) -> None:
        self._running: dict[int, Child] = {}

    def start(self, order: Order) -> Child:
        """Starts a process."""
        child = Child(order)
        self._running[child.pid] = child
        return child

    def reap(self) -> None:
        """Waits for all processes that have ended. Call it on SIGCHLD, on the event loop."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if (child := self._running.pop(pid, None)) is not None:
                child.end(os.waitstatus_to_exitcode(status))
