"""Child processes, each in a group of its own: their lines are shown, and they end with all that they started."""

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

#: How often it is looked whether a process group that was asked to end has done so.
_POLL_SECONDS: Final = 0.02

#: How long the output of a process that has ended may stay open. What it started may have left the group with it.
_OUTPUT_SECONDS: Final = 1.0


class Child:
    """A process in a session of its own, whose lines are shown under a name.

    Attributes:
        name: What its lines are prefixed with.
        title: What it is called in messages.
        ended: Done, with the return code, when the process has ended and what it wrote is shown.
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
        """Starts a command.

        Raises:
            OSError: It cannot be run.
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
        """The number of the process, and of its group."""
        return self._process.pid

    @property
    def error(self) -> str:
        """The exception that it ended with, as its standard error shows it; '' where that shows none."""
        return self._traceback.error

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone, which may have ended."""
        # Not by Popen, which would take the end of the process for itself.
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def end(self, grace: float, hurry: asyncio.Event) -> None:
        """Ends the process and all that is left in its group: asked first, killed after the grace period.

        Args:
            grace: Seconds.
            hurry: Cuts the grace period short when it is set.
        """
        group = self._process.pid
        signal_group(group, signal.SIGTERM)
        # One that was stopped, as by Ctrl-Z in a debugger, would not hear of it.
        signal_group(group, signal.SIGCONT)
        deadline = time.monotonic() + grace
        # Nothing tells when the last process of a group ends, so that it has to be looked for.
        while group_runs(group) and not hurry.is_set() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        signal_group(group, signal.SIGKILL)
        await self.ended
        self._guard.forget(group)
        # Only now may the system give the number of the process and its group to others.
        self._process.wait()

    async def _run(self) -> int:
        pid = self._process.pid
        code = await _return_code(pid)
        # What it started has no business without it, and may hold its output open.
        signal_group(pid, signal.SIGTERM)
        await asyncio.wait([output.closed for output in self._outputs], timeout=_OUTPUT_SECONDS)
        for output in self._outputs:
            output.close()
        return code


def _start_guarded(
    command: Sequence[str], environ: Mapping[str, str], output: int, errors: int, guard: Guard
) -> "subprocess.Popen[bytes]":
    # Not by asyncio: it lets a child run, and this process show what it prints, before it tells which child it is.
    process = subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        # A terminal's Ctrl-C then reaches the launcher alone, which ends its children in order.
        start_new_session=True,
    )
    guard.watch(process.pid)
    return process


async def _return_code(pid: int) -> int:
    """Waits until a child has ended, but leaves it a zombie, so that its number stays its own."""
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
        closed: Done when nobody can write to it any more, or when it was closed.
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
        """Reads no more, and shows what has come."""
        if not self.closed.done():
            self.closed.set_result(None)
            self._source.close()
            if self._transport is not None:
                self._transport.close()


async def end(children: Iterable[Child], grace: float, hurry: asyncio.Event) -> None:
    """Ends several processes at once; see Child.end."""
    await asyncio.gather(*(child.end(grace, hurry) for child in children))


def describe(code: int) -> str:
    """How a process with this return code ended, in words."""
    if code >= 0:
        return f"ended with status {code}"
    name = str(-code)
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
    return f"was killed by {name}"


def shell_status(code: int) -> int:
    """A return code as a shell would report it."""
    return code if code >= 0 else 128 - code
