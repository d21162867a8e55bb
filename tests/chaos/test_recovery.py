"""How soon all workers of a job train again after one has ended, where each is started again as a Job does it."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faults.watching import wait_until

_PROGRAM = """
import numpy as np
import psum.client
store = psum.client.connect().store()
while True:
    for key in range(5):
        store.push_pull(key, np.ones(1000, np.float32))
    print(flush=True)
"""

WORKERS = 3


class _Index:
    """One index of an Indexed Job: a process that is started again when it has failed.

    Args:
        environ: Its environment.
        log: What its processes write to standard error.
        delay: Seconds from a failure to the next start.
    """

    def __init__(self, environ: dict[str, str], log: pathlib.Path, delay: float) -> None:
        self.statuses: list[int] = []
        self.trains = False
        """Whether the process that runs now has made a step."""
        self.log = log
        self._environ = environ
        self._delay = delay
        self._ended = threading.Event()
        self.process = self._start()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self.process.kill()
        self._thread.join(20)

    def _start(self) -> "subprocess.Popen[str]":
        with self.log.open("a") as errors:
            return subprocess.Popen(
                [sys.executable, "-c", _PROGRAM], env=self._environ, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def _run(self) -> None:
        while True:
            with self.process as process:
                for _ in process.stdout or ():
                    self.trains = True
                status = process.wait()
            if self._ended.is_set():
                return
            self.trains = False
            self.statuses.append(status)
            if self._ended.wait(self._delay):
                return
            self.process = self._start()


@contextlib.contextmanager
def a_job(addresses: list[str], directory: pathlib.Path, delay: float) -> Iterator[list[_Index]]:
    environ = os.environ | {"PSUM_AGGREGATORS": ",".join(addresses), "PSUM_NUM_WORKERS": str(WORKERS)}
    indexes = []
    try:
        for rank in range(WORKERS):
            log = directory / f"rank-{rank}.log"
            indexes.append(_Index(environ | {"JOB_COMPLETION_INDEX": str(rank)}, log, delay))
        yield indexes
    finally:
        for index in indexes:
            index.close()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)])
def test_all_train_again_soon_after_one_has_ended(
    make_aggregator: Callable[..., Any], tmp_path: pathlib.Path, number: signal.Signals, status: int
) -> None:
    """Each process fails once, the others with the status that says that it was not their fault."""
    addresses = [make_aggregator("--closed-timeout", "2s").address for _ in range(2)]
    # StreamLimits need not wait for the process that comes in the place of one that was killed.
    delay = 3.0
    with a_job(addresses, tmp_path, delay) as indexes:
        wait_until(lambda: all(index.trains for index in indexes), what="all train", timeout=40)
        begin = time.monotonic()
        indexes[1].process.send_signal(number)
        wait_until(lambda: any(index.statuses for index in indexes), what="one has ended")
        wait_until(
            lambda: all(index.trains and index.statuses for index in indexes),
            what="all train again",
            timeout=delay + 15,
        )
        print(f"{number.name}: all train again after {time.monotonic() - begin:.1f} s")
        logs = "".join(index.log.read_text() for index in indexes)
        assert [index.statuses for index in indexes] == [[75], [status], [75]], logs
