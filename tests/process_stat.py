"""What the kernel tells about processes."""

import os
import pathlib
import time
from typing import Final

#: The kind of clock that counts a process's processor time; see CPUCLOCK_SCHED in the kernel's posix-timers.h.
_SCHED: Final = 2


def stat_fields(pid: int, thread: int | None = None) -> list[str]:
    """Returns the fields of /proc/PID/stat from the third on, which is the state, or those of one of its threads.

    Raises:
        OSError: There is no such process.
    """
    process = pathlib.Path(f"/proc/{pid}")
    path = process / "stat" if thread is None else process / "task" / str(thread) / "stat"
    # The second field is the command, which stands in parentheses and may contain any character.
    return path.read_text(errors="replace").rpartition(")")[2].split()


def is_running(pid: int) -> bool:
    """Returns whether a process runs. A zombie does not."""
    try:
        return stat_fields(pid)[0] not in "ZX"
    except OSError:
        return False


def processor_seconds(pid: int) -> float:
    """Returns the processor time of all threads of a process, to the nanosecond.

    Raises:
        OSError: There is no such process.
    """
    # This is what clock_getcpuclockid(3) returns, which Python does not have.
    return time.clock_gettime((~pid << 3) | _SCHED)


def thread_seconds(pid: int, thread: int) -> float:
    """Returns the processor time of one thread of a process, to the kernel's tick.

    Raises:
        OSError: There is no such thread.
    """
    # A thread's clock can be read in its own process only.
    fields = stat_fields(pid, thread)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
