"""Whether a process grows."""

import statistics

from faults.watching import open_files, resident_bytes, threads


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

    @property
    def problems(self) -> list[str]:
        """What has grown: the last third against the second, the first being the warm-up; and what was not given back.

        The first sample and the last are those of the process at rest.
        """
        third = len(self.resident) // 3
        found = []
        before, after = (statistics.median(self.resident[n * third : (n + 1) * third]) for n in (1, 2))
        if after > before * 1.05 + (8 << 20):
            found.append(f"{self.name}: grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB")
        if self.files[-1] > self.files[0] + 4:
            found.append(f"{self.name}: had {self.files[0]} open files at rest, and has {self.files[-1]}")
        if self.threads[-1] > self.threads[0] + 16:
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
