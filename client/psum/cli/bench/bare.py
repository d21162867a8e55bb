"""Runs a pipeline without psum: what the machine's memory, TCP and gRPC allow.

`python -m psum.cli.bench.bare PLAN`, with PLAN as JSON, starts the processes of one pipeline and prints the processor
time that all of them took, as JSON.
"""

import ctypes
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

from psum.cli.bench.bare_pipelines import PIPELINES
from psum.cli.bench.bare_plan import Plan

#: The longest time of one pipeline.
_TIMEOUT_SECONDS: Final = 60.0

_PR_SET_PDEATHSIG: Final = 1


def run(plan: Plan) -> tuple[float, float]:
    """Run a pipeline; return the processor seconds of all workers, and of the server, in the timed steps.

    Raises:
        RuntimeError: A process failed, or all of them took too long.
    """
    with _Children() as children:
        PIPELINES[plan.plane](plan, children.start)
        return children.results(plan.workers)


class _Children:
    """The processes of a pipeline, each forked from this one. They end with it, however it ends."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._pids: list[int] = []

    def __enter__(self) -> "_Children":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(self._reader)
        os.close(self._writer)

    def start(self, work: Callable[[], float], *, is_server: bool) -> None:
        """Start a process that does some work, which returns its processor seconds."""
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._pids.append(pid)
            return
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent:
                os.write(self._writer, f"{int(is_server)} {work()}\n".encode())
                # Others may still read what it has sent.
                signal.pause()
        except BaseException as error:
            os.write(self._writer, f"failed {error!r}\n".replace("\n", " ").encode() + b"\n")
        finally:
            os._exit(1)

    def results(self, workers: int) -> tuple[float, float]:
        """Wait for all processes; return the processor seconds of all workers and of the server.

        Raises:
            RuntimeError: A process failed, or they took too long.
        """
        times: list[list[float]] = [[], []]
        deadline, data = time.monotonic() + _TIMEOUT_SECONDS, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._reader, selectors.EVENT_READ)
            while len(times[0]) < workers or not times[1]:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise RuntimeError(f"the bare pipeline took more than {_TIMEOUT_SECONDS:g} s")
                data += os.read(self._reader, 4096)
                *lines, data = data.split(b"\n")
                for line in lines:
                    which, _, value = line.decode().partition(" ")
                    if which == "failed":
                        raise RuntimeError(f"a process of the bare pipeline failed: {value}")
                    times[int(which)].append(float(value))
        return sum(times[0]), times[1][0]


def main(argument: str) -> None:
    """Run a pipeline and print its processor times."""
    workers, server = run(Plan(**json.loads(argument)))
    print(json.dumps({"workers": workers, "server": server}))


if __name__ == "__main__":
    main(sys.argv[1])
