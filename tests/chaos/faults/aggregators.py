"""Aggregators as processes that can be killed and come back on the same address."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

PATIENCE_SECONDS = 30.0

#: Not the ports that the kernel gives to whoever connects: one of those could be taken while its aggregator is down.
_PORTS = (12000, 30000)

#: A loopback address that is not the proxies': they have the same port for data connections as the aggregator behind.
_HOST = "127.0.0.2"


class AggregatorProcess:
    """`psum aggregator` on one address, to be killed and started again.

    Args:
        directory: Where its log is written.
        flags: More flags.

    Attributes:
        address: Where it listens, the same after every start.
        data_port: Where it takes data connections, likewise.
    """

    def __init__(self, directory: pathlib.Path, flags: tuple[str, ...] = ()) -> None:
        directory.mkdir(exist_ok=True)
        self._announce = directory / "address"
        self._log = directory / "log"
        self._flags = flags
        self.address = f"{_HOST}:{free_port()}"
        self.data_port = free_port()
        self.start()

    def start(self) -> None:
        """Starts it and waits until it serves."""
        self._announce.unlink(missing_ok=True)
        command = [sys.executable, "-m", "psum.cli", "aggregator", "--listen", self.address]
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
        """Sends a signal and waits for the end; returns the status."""
        os.kill(self.process.pid, number)
        return self.process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """Kills it where it runs."""
        if self.process.poll() is None:
            self.end()

    @property
    def log(self) -> str:
        """What it has logged since its first start."""
        return self._log.read_text()


@contextlib.contextmanager
def aggregators(directory: pathlib.Path, count: int, *flags: str) -> Iterator[list[AggregatorProcess]]:
    """Some aggregators with the same flags, which end with the block."""
    with contextlib.ExitStack() as stack:
        made = []
        for number in range(count):
            made.append(AggregatorProcess(directory / f"aggregator-{number}", flags))
            stack.callback(made[-1].close)
        yield made


def free_port() -> int:
    """A port of all loopback addresses that nobody listens on, and that stays free while whoever uses it is down."""
    while True:
        port = random.SystemRandom().randrange(*_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
