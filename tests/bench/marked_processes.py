"""Finds the aggregators of a job by a mark in their environment, and the processor time of processes."""

import pathlib
import time
from collections.abc import Iterator

#: The kind of clock that counts a process's processor time; see CPUCLOCK_SCHED in the kernel's posix-timers.h.
_SCHED = 2


def aggregators(variable: str, mark: str) -> Iterator[int]:
    """Yields the process ids of the aggregators, with all of their processes, that have inherited a variable.

    Args:
        variable: The name of the variable.
        mark: Its value, which only the processes of this job have.
    """
    wanted = f"{variable}={mark}".encode()
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes()
                if b"psum.aggregator.processes" in command or b"\0aggregator\0" in command:
                    yield int(entry.name)
        except OSError:
            continue


def processor_seconds(pid: int) -> float:
    """Returns the processor time of all threads of a process, to the nanosecond.

    Raises:
        OSError: There is no such process.
    """
    # This is what clock_getcpuclockid(3) returns, which Python does not have.
    return time.clock_gettime((~pid << 3) | _SCHED)
