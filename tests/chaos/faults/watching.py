"""Inspects aggregators and processes from outside."""

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
    """Poll a condition until it holds, because other processes send no notification. Return the seconds it took."""
    begin = time.monotonic()
    while not condition(*arguments):
        assert time.monotonic() - begin < timeout, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - begin


def find_job(address: str, name: str = "default") -> pb.JobStatus | None:
    """Return the job of this name that is in progress on an aggregator, or None."""
    return next(iter(psum.fetch_status(address, job=name).jobs), None)


def is_over(address: str, name: str = "default") -> bool:
    """Return whether an aggregator has no job of this name in progress."""
    return find_job(address, name) is None


def holds_nothing(address: str, name: str = "default") -> bool:
    """Return whether an aggregator holds no payload of a job."""
    job = find_job(address, name)
    return job is None or job.held_bytes == 0


def find_jobs(address: str) -> list[str]:
    """Return the names of all jobs in progress on an aggregator."""
    return [job.name for job in psum.fetch_status(address).jobs]


def rounds_waiting(addresses: list[str], name: str = "default") -> list[tuple[str, int, tuple[int, ...]]]:
    """Return the waiting rounds on these aggregators, each with key, round and the ranks that have not contributed."""
    jobs = filter(None, (find_job(address, name) for address in addresses))
    return [(r.key, r.round, tuple(r.waiting_for)) for job in jobs for r in job.rounds]


def is_gone(address: str, rank: int, name: str = "default") -> bool:
    """Return whether an aggregator has noticed the loss of a rank's connection."""
    job = find_job(address, name)
    return job is None or not any(worker.rank == rank and worker.connected for worker in job.workers)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    """Return the number of open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def kinds_of_files(pid: int) -> str:
    """Describe the open files of a process: the number of sockets, of pipes and of each file."""
    kinds = Counter[str]()
    for path in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        # A file may be closed while this loop runs.
        with contextlib.suppress(FileNotFoundError):
            kinds[re.sub(r"(:\[\d+\]|-[0-9a-f]{32})", "", os.readlink(path))] += 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def threads(pid: int) -> int:
    """Return the number of threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))
