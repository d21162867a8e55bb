"""Looking at aggregators and processes from outside."""

import contextlib
import os
import pathlib
import re
import time
from collections import Counter
from collections.abc import Callable

from psum import client as psum
from psum.v1 import aggregator_pb2 as pb

PATIENCE_SECONDS = 20.0


def wait_until(
    condition: Callable[..., bool], *arguments: object, what: str, timeout: float = PATIENCE_SECONDS
) -> float:
    """Polls, since what happens in another process tells nobody; returns how many seconds it took."""
    begin = time.monotonic()
    while not condition(*arguments):
        assert time.monotonic() - begin < timeout, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - begin


def find_job(address: str, name: str = "default") -> pb.JobStatus | None:
    """A job in progress on an aggregator, None where there is none of that name."""
    return next(iter(psum.fetch_status(address, job=name).jobs), None)


def is_over(address: str, name: str = "default") -> bool:
    """Whether a job is in progress on an aggregator no more."""
    return find_job(address, name) is None


def holds_nothing(address: str, name: str = "default") -> bool:
    """Whether an aggregator has let go of what a job had there."""
    job = find_job(address, name)
    return job is None or job.held_bytes == 0


def find_jobs(address: str) -> list[str]:
    """The names of all jobs in progress on an aggregator."""
    return [job.name for job in psum.fetch_status(address).jobs]


def rounds_waiting(addresses: list[str], name: str = "default") -> list[tuple[str, int, tuple[int, ...]]]:
    """The rounds that wait on these aggregators: key, round, and the ranks that have not contributed."""
    jobs = filter(None, (find_job(address, name) for address in addresses))
    return [(r.key, r.round, tuple(r.waiting_for)) for job in jobs for r in job.rounds]


def is_gone(address: str, rank: int, name: str = "default") -> bool:
    """Whether an aggregator has noticed that a rank's connection is gone."""
    job = find_job(address, name)
    return job is None or not any(worker.rank == rank and worker.connected for worker in job.workers)


def resident_bytes(pid: int) -> int:
    """The memory that a process really takes."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    """The number of file descriptors that a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def kinds_of_files(pid: int) -> str:
    """What a process has open, for people: sockets, pipes and files, each with their number."""
    kinds = Counter[str]()
    for path in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        # Some are closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            kinds[re.sub(r"(:\[\d+\]|-[0-9a-f]{32})", "", os.readlink(path))] += 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def threads(pid: int) -> int:
    """The number of threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))
