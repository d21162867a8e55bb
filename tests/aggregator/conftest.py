"""An aggregator in a process of its own."""

import dataclasses
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.processes import with_descriptors


@dataclasses.dataclass(frozen=True)
class Served:
    """A running `psum aggregator`.

    Attributes:
        address: Where it serves workers.
        http: Where it serves probes, metrics and the status page.
        pid: Its process.
    """

    address: str
    http: str
    pid: int


@pytest.fixture
def start_process() -> Iterator[Callable[..., Served]]:
    """Starts a `psum aggregator` on free ports, with more arguments where they are given, and with a limit of file
    descriptors where one is; ends it after the test."""
    started: list[tuple[subprocess.Popen[str], threading.Thread]] = []

    def start(*arguments: str, descriptors: int | None = None) -> Served:
        command = [sys.executable, "-m", "psum.cli", "aggregator", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        command += arguments
        if descriptors is not None:
            command = with_descriptors(descriptors, command)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        log = ""
        while (line := process.stderr.readline()) and "listening on" not in (log := log + line):
            pass
        # Drain its output, so that it never blocks on a full pipe.
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        started.append((process, drain))
        served, probed = (re.search(rf"{words} (?:http://)?([^\s/]+)", log) for words in ("listening on", "probes at"))
        assert served is not None, log
        assert probed is not None, log
        return Served(served[1], probed[1], process.pid)

    yield start
    for process, drain in started:
        process.terminate()
        process.wait(30)
        drain.join(30)
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture
def serve_process(start_process: Callable[..., Served]) -> tuple[str, str]:
    """A running `psum aggregator`: its address, and the address of its HTTP server."""
    served = start_process()
    return served.address, served.http
