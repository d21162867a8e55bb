"""Aggregator processes that can be killed and restarted on the same address."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

PATIENCE_SECONDS = 30.0

#: Outside the kernel's range of ephemeral ports: another process could get one of those while the aggregator is down.
_PORTS = (12000, 30000)

#: Differs from the proxies' loopback address, because a proxy uses the same data port as its aggregator.
_HOST = "127.0.0.2"


class AggregatorProcess:
    """A `psum aggregator` process that keeps its address across restarts.

    Args:
        directory: Directory for its log.
        flags: Additional command-line flags.
        processes: How many processes serve behind its address. `process` is then their supervisor.
        prefix: A command that runs it elsewhere.

    Attributes:
        address: Its listening address, the same after every start.
        data_port: Its port for data connections, the same after every start.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        flags: tuple[str, ...] = (),
        *,
        processes: int = 1,
        prefix: Sequence[str] = (),
    ) -> None:
        directory.mkdir(exist_ok=True)
        self._announce = directory / "address"
        self._log = directory / "log"
        self._flags = flags
        self._prefix = prefix
        if processes == 1:
            port, self.data_port = free_port(), free_port()
        else:
            # One range without gaps for all processes.
            port, self.data_port, *_ = free_ports(2 * processes)
            self._flags += ("--processes", str(processes))
        self.address = f"{_HOST}:{port}"
        self.start()

    def start(self) -> None:
        """Start the process and wait until it serves."""
        self._announce.unlink(missing_ok=True)
        command = [*self._prefix, sys.executable, "-m", "psum.cli", "aggregator", "--listen", self.address]
        command += ["--data-port", str(self.data_port), "--announce", str(self._announce), *self._flags]
        with self._log.open("a") as log:
            self.process = subprocess.Popen(command, stderr=log)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._announce.exists():
            if self.process.poll() is not None or time.monotonic() >= deadline:
                self.close()
                raise AssertionError(f"the aggregator does not serve: {self.log}")
            time.sleep(0.01)

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal, wait for the process to end and return its exit status."""
        os.kill(self.process.pid, number)
        return self.process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """Kill the process if it is running."""
        if self.process.poll() is None:
            self.end()

    @property
    def children(self) -> list[int]:
        """The ids of its child processes, in the order of their starts."""
        pid = self.process.pid
        return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def log(self) -> str:
        """Everything that it has logged since its first start."""
        return self._log.read_text()


@contextlib.contextmanager
def aggregators(directory: pathlib.Path, count: int, *flags: str) -> Iterator[list[AggregatorProcess]]:
    """Run `count` aggregators with the same flags until the end of the block."""
    with contextlib.ExitStack() as stack:
        made = []
        for number in range(count):
            made.append(AggregatorProcess(directory / f"aggregator-{number}", flags))
            stack.callback(made[-1].close)
        yield made


def free_port() -> int:
    """Find a port that is free on all loopback addresses and that the kernel does not assign while its user is down."""
    return free_ports(1)[0]


def free_ports(count: int) -> range:
    """Find consecutive ports of that kind."""
    while True:
        first = random.SystemRandom().randrange(*_PORTS)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("", port))
            return range(first, first + count)
