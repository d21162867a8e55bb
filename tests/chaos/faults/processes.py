"""The controlling side of worker.py: starts worker processes, sends them commands and reads their events."""

import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from faults import worker

PATIENCE_SECONDS = 60.0

#: Prefix that makes a command process 1 of a PID namespace, as in a container. The kernel delivers to process 1 only
#: signals that it has a handler for.
PROCESS_1: Final = ("unshare", "--pid", "--fork", "--kill-child")

#: An event that a worker reports. Its kind is under "event".
Event = dict[str, Any]


class WorkerFailed(Exception):
    """A worker reported an error.

    Attributes:
        error: The error in the form of `worker.describe`.
    """

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error
        super().__init__(f"{error['kind']}: {error['text']}")


class WorkerProcess:
    """A worker process.

    Args:
        log: File to which its standard error is appended.
        process_1: Whether it is process 1 of a PID namespace.
        prefix: A command that runs it elsewhere, such as in a network namespace, and becomes the process itself.

    Attributes:
        process: The process, or its parent if it is process 1.
        is_process_1: Whether it is process 1.
        events: All events reported so far, in order.
    """

    def __init__(self, log: pathlib.Path, *, process_1: bool = False, prefix: Sequence[str] = ()) -> None:
        self._log = log
        self.is_process_1 = process_1
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [*(PROCESS_1 if process_1 else prefix), sys.executable, worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # A separate process group, so that close() also kills its children.
                process_group=0,
                # One malloc arena for all threads: memory that several arenas keep would hide a leak.
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
            )
        self.events: list[Event] = []
        self._untaken: queue.Queue[Event] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        """Everything that it has written to its standard error."""
        return self._log.read_text()

    @property
    def last(self) -> str:
        """The kind of the last event, or '' before the first."""
        return self.events[-1]["event"] if self.events else ""

    def send(self, do: str, **arguments: Any) -> None:
        """Send a command. It is dropped if the process has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the worker itself."""
        pid = self.process.pid
        if self.is_process_1:
            pid = int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        os.kill(pid, number)

    def next(self, *kinds: str, timeout: float = PATIENCE_SECONDS) -> Event:
        """Return the next event of these kinds and skip other events before it.

        Raises:
            WorkerFailed: The worker reported an error instead, and `kinds` does not include `error`.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                event = self._untaken.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(
                    f"no {' or '.join(kinds)} event within {timeout:g} s; last: {self.events[-5:]}, log: {self.log}"
                ) from None
            if event["event"] in kinds:
                return event
            if event["event"] == "error":
                raise WorkerFailed(event["error"])
            assert event["event"] != "ended", f"the worker ended before {' or '.join(kinds)}: {self.log}"

    def wait(self, timeout: float = PATIENCE_SECONDS) -> int:
        """Wait for the process to end and return its exit status."""
        return self.process.wait(timeout)

    def close(self) -> None:
        """Kill the process and its children if they are running, and release its resources."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            self.events.append(event)
            self._untaken.put(event)
        self._untaken.put({"event": "ended"})
