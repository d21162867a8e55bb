"""Samples a process's memory, open files and threads, and detects growth."""

import statistics
import time

from faults.watching import kinds_of_files, open_files, resident_bytes, threads

#: Tolerance for memory that varies without growing.
NOISE_BYTES = 12 << 20

#: The same tolerance for open files and threads.
_NOISE_COUNT = 4


class Sampler:
    """Collects samples of a process that must not grow.

    Args:
        name: The process, for people.
        pid: Its id.
        kept_bytes: How much memory it may have kept since the first sample when it is idle.

    Attributes:
        resident: Resident memory in bytes, one sample per second.
        files: Number of open file descriptors, sampled likewise.
        threads: Number of threads, sampled likewise.
    """

    def __init__(self, name: str, pid: int, kept_bytes: int = NOISE_BYTES) -> None:
        self.name = name
        self._pid = pid
        self._kept_bytes = kept_bytes
        self.resident: list[int] = []
        self.files: list[int] = []
        self.threads: list[int] = []

    def sample(self) -> None:
        """Take one sample."""
        self.resident.append(resident_bytes(self._pid))
        self.files.append(open_files(self._pid))
        self.threads.append(threads(self._pid))

    def wait_until_idle(self, patience: float) -> None:
        """Wait until the process has as few files open as in the first sample, for at most `patience` seconds."""
        deadline = time.monotonic() + patience
        while open_files(self._pid) > self.files[0] + _NOISE_COUNT and time.monotonic() < deadline:
            time.sleep(0.1)

    @property
    def problems(self) -> list[str]:
        """The resources that have grown, each described in a line.

        Idle growth compares the first sample with the last one. Growth under load compares the second third of the
        samples with the last third. Use under load depends on the current jobs, so the minimum of each third counts.
        """
        third = len(self.resident) // 3
        found = []
        least = [min(self.resident[n * third : (n + 1) * third]) for n in range(3)]
        for when, before, after, noise in (
            ("when idle", self.resident[0], self.resident[-1], self._kept_bytes),
            ("under load", least[1], least[2], NOISE_BYTES),
        ):
            if after > before * 1.05 + noise:
                found.append(f"{self.name}: grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB {when}")
        if self.files[-1] > self.files[0] + _NOISE_COUNT:
            found.append(
                f"{self.name}: open files when idle grew from {self.files[0]} to {self.files[-1]}:"
                f" {kinds_of_files(self._pid)}"
            )
        if self.threads[-1] > self.threads[0] + _NOISE_COUNT:
            found.append(f"{self.name}: threads when idle grew from {self.threads[0]} to {self.threads[-1]}")
        return found

    def summary(self) -> dict[str, str]:
        """The first, median and last sample of each resource, as text."""

        def line(values: list[int], unit: int = 1) -> str:
            first, middle, last = (round(v / unit) for v in (values[0], statistics.median(values), values[-1]))
            return f"first {first}, median {middle}, last {last}"

        return {
            f"{self.name}: MiB resident": line(self.resident, 1 << 20),
            f"{self.name}: open files": line(self.files),
            f"{self.name}: threads": line(self.threads),
        }
