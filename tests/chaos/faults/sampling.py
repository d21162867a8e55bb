"""Whether a process grows."""

import statistics
import time

from faults.watching import kinds_of_files, open_files, resident_bytes, threads

#: By how much memory may differ that does not grow.
_NOISE_BYTES = 12 << 20

#: The same for files and threads.
_NOISE_COUNT = 4


class Sampler:
    """Samples a process that must not grow.

    Attributes:
        resident: Bytes of memory, one a second.
        files: Open file descriptors.
        threads: Threads.
    """

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self._pid = pid
        self.resident: list[int] = []
        self.files: list[int] = []
        self.threads: list[int] = []

    def sample(self) -> None:
        """Takes one sample."""
        self.resident.append(resident_bytes(self._pid))
        self.files.append(open_files(self._pid))
        self.threads.append(threads(self._pid))

    def wait_for_rest(self, patience: float) -> None:
        """Waits until it has no more files open than at first, or for so many seconds."""
        deadline = time.monotonic() + patience
        while open_files(self._pid) > self.files[0] + _NOISE_COUNT and time.monotonic() < deadline:
            time.sleep(0.1)

    @property
    def problems(self) -> list[str]:
        """What has grown: at rest, from the first sample to the last, and at work, from the second third to the last.

        What a process takes at work depends on the jobs that it has just then, so that the least of each third counts.
        """
        third = len(self.resident) // 3
        found = []
        least = [min(self.resident[n * third : (n + 1) * third]) for n in range(3)]
        for when, before, after in (
            ("at rest", self.resident[0], self.resident[-1]),
            ("at work", least[1], least[2]),
        ):
            if after > before * 1.05 + _NOISE_BYTES:
                found.append(f"{self.name}: grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB {when}")
        if self.files[-1] > self.files[0] + _NOISE_COUNT:
            found.append(
                f"{self.name}: had {self.files[0]} open files at rest, and has {self.files[-1]}:"
                f" {kinds_of_files(self._pid)}"
            )
        if self.threads[-1] > self.threads[0] + _NOISE_COUNT:
            found.append(f"{self.name}: had {self.threads[0]} threads at rest, and has {self.threads[-1]}")
        return found

    def summary(self) -> dict[str, str]:
        """First, median and last of each, for people."""

        def line(values: list[int], unit: int = 1) -> str:
            first, middle, last = (round(v / unit) for v in (values[0], statistics.median(values), values[-1]))
            return f"{first} at first, {middle} in between, {last} at last"

        return {
            f"{self.name}: MiB resident": line(self.resident, 1 << 20),
            f"{self.name}: open files": line(self.files),
            f"{self.name}: threads": line(self.threads),
        }
