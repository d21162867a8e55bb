"""Child processes, each in its own process group. Their output is shown, and the whole group is ended."""

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self

from psum.cli.launch.display import Display, Source
from psum.cli.launch.guard import Guard, group_runs, signal_group
from psum.cli.launch.tracebacks import TracebackReader

#: The interval of checks whether a process group has ended.
_POLL_SECONDS: Final = 0.02

#: How long to read the output of an ended process. A process that left the group may keep the output open.
_OUTPUT_SECONDS: Final = 1.0


class Child:
    """A process in its own session, with its output shown under a name.

    Attributes:
        name: The prefix of its lines.
        title: Its name in messages.
        ended: A task that returns the return code after the process has ended and its output is shown.
    """

    def __init__(
        self,
        name: str,
        title: str,
        process: "subprocess.Popen[bytes]",
        outputs: "Sequence[_Output]",
        traceback: TracebackReader,
        guard: Guard,
    ) -> None:
        self.name = name
        self.title = title
        self._traceback = traceback
        self._process = process
        self._outputs = outputs
        self._guard = guard
        self.ended = asyncio.create_task(self._run())

    @classmethod
    async def start(
        cls, name: str, title: str, command: Sequence[str], environ: Mapping[str, str], display: Display, guard: Guard
    ) -> Self:
        """Start a command.

        Raises:
            OSError: The command cannot be run.
        """
        loop = asyncio.get_running_loop()
        outputs, ends = [], []
        traceback = TracebackReader()
        try:
            for error, heard in ((False, lambda line: None), (True, traceback.feed)):
                reading, writing = os.pipe()
                ends.append(writing)
                output = functools.partial(_Output, display.source(name, error=error, heard=heard))
                outputs.append((await loop.connect_read_pipe(output, os.fdopen(reading, "rb", 0)))[1])
            process = _start_guarded(command, environ, ends[0], ends[1], guard)
        finally:
            for writing in ends:
                os.close(writing)
        return cls(name, title, process, outputs, traceback, guard)

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""
        return self._process.pid

    @property
    def error(self) -> str:
        """The exception that ended the process, as on its standard error; '' without one."""
        return self._traceback.error

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process only, if it still runs."""
        # Not with Popen, which would reap the process.
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def end(self, grace: float, hurry: asyncio.Event) -> None:
        """End all processes of the group by SIGTERM, and after the grace period by SIGKILL.

        Args:
            grace: The grace period in seconds.
            hurry: Ends the grace period when it is set.
        """
        group = self._process.pid
        signal_group(group, signal.SIGTERM)
        # A stopped process, as after Ctrl-Z in a debugger, handles SIGTERM only after SIGCONT.
        signal_group(group, signal.SIGCONT)
        deadline = time.monotonic() + grace
        # The system does not report the end of a group, so poll.
        while group_runs(group) and not hurry.is_set() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        signal_group(group, signal.SIGKILL)
        await self.ended
        self._guard.forget(group)
        # From here on the system may reuse the number of the process and its group.
        self._process.wait()

    async def _run(self) -> int:
        pid = self._process.pid
        code = await _return_code(pid)
        # Its descendants are not needed any more, and may keep its output open.
        signal_group(pid, signal.SIGTERM)
        await asyncio.wait([output.closed for output in self._outputs], timeout=_OUTPUT_SECONDS)
        for output in self._outputs:
            output.close()
        return code


def _start_guarded(
    command: Sequence[str], environ: Mapping[str, str], output: int, errors: int, guard: Guard
) -> "subprocess.Popen[bytes]":
    # Not with asyncio, which lets the child run and print before this process knows its id.
    process = subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        # Ctrl-C in a terminal then reaches only the launcher, which ends its children in order.
        start_new_session=True,
    )
    guard.watch(process.pid)
    return process


async def _return_code(pid: int) -> int:
    """Wait until a child has ended. Leave it a zombie, so that the system does not reuse its number."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    descriptor = os.pidfd_open(pid)
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return _peek_return_code(pid)


def _peek_return_code(pid: int) -> int:
    result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert result is not None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


class _Output(asyncio.Protocol):
    """The reading end of a pipe that a child writes to.

    Attributes:
        closed: Done when the pipe has no writer any more, or when this end was closed.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._transport: asyncio.BaseTransport | None = None
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.closed.done():
            self._source.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading, and show what was read."""
        if not self.closed.done():
            self.closed.set_result(None)
            self._source.close()
            if self._transport is not None:
                self._transport.close()


async def end(children: Iterable[Child], grace: float, hurry: asyncio.Event) -> None:
    """End several processes at the same time; see Child.end."""
    await asyncio.gather(*(child.end(grace, hurry) for child in children))


def describe(code: int) -> str:
    """Describe a return code, such as 'ended with status 1' or 'was killed by SIGKILL'."""
    if code >= 0:
        return f"ended with status {code}"
    name = str(-code)
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
    return f"was killed by {name}"


def shell_status(code: int) -> int:
    """Convert a return code to the exit status that a shell would report."""
    return code if code >= 0 else 128 - code
