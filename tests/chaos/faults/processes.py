"""The other side of worker.py: starts worker processes, tells them what to do and hears what came of it."""

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
from typing import Any, Final

from faults import worker

PATIENCE_SECONDS = 60.0

#: What makes a command process 1 of a namespace of its own, as in a container: the kernel keeps signals from it for
#: which it has no handler.
PROCESS_1: Final = ("unshare", "--pid", "--fork", "--kill-child")

#: What a worker tells: its kind is under "event".
Event = dict[str, Any]


class WorkerFailed(Exception):
    """A worker told of an error.

    Attributes:
        error: As `worker.describe` gives it.
    """

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error
        super().__init__(f"{error['kind']}: {error['text']}")


class WorkerProcess:
    """A worker process.

    Args:
        log: The file that its standard error is appended to.
        process_1: Whether it is process 1.

    Attributes:
        process: The process, or its parent where it is process 1.
        is_process_1: Whether it is that.
        events: All that it has told so far, in order.
    """

    def __init__(self, log: pathlib.Path, *, process_1: bool = False) -> None:
        self._log = log
        self.is_process_1 = process_1
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [*(PROCESS_1 if process_1 else ()), sys.executable, worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # A group of its own, which its children are in too.
                process_group=0,
                # With one arena of the C allocator for all threads, what it keeps does not hide what is lost.
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
            )
        self.events: list[Event] = []
        self._untaken: queue.Queue[Event] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        """What it has written to its standard error."""
        return self._log.read_text()

    @property
    def last(self) -> str:
        """The kind of the last event, '' before the first."""
        return self.events[-1]["event"] if self.events else ""

    def send(self, do: str, **arguments: Any) -> None:
        """Gives a command; to a process that has ended it is lost."""
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
        """The next event of these kinds; others that come before it are passed over.

        Raises:
            WorkerFailed: It told of an error instead, and `error` was not asked for.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                event = self._untaken.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(
                    f"no {' or '.join(kinds)} within {timeout:g} s; it told {self.events[-5:]} and wrote {self.log}"
                ) from None
            if event["event"] in kinds:
                return event
            if event["event"] == "error":
                raise WorkerFailed(event["error"])
            assert event["event"] != "ended", f"it ended before {' or '.join(kinds)}: {self.log}"

    def wait(self, timeout: float = PATIENCE_SECONDS) -> int:
        """Waits for its end; returns the status."""
        return self.process.wait(timeout)

    def close(self) -> None:
        """Kills it and its children where they run, and lets go of it."""
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
