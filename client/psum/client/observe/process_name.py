"""What a worker tells about its process."""

import os
import pathlib
import socket

pid = os.getpid()
"""The id of this process, cached: os.getpid is a system call."""


def _forked() -> None:
    global pid
    pid = os.getpid()


os.register_at_fork(after_in_child=_forked)


def name() -> str:
    """Returns the host and pid of this process, for people."""
    return f"{socket.gethostname()} pid {pid}"


def age_seconds() -> float:
    """Returns the seconds since this process was started; 0 if the system does not tell."""
    try:
        # The second field is the command, which may contain anything and ends at the last parenthesis. Field 22 is the
        # start.
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, float(pathlib.Path("/proc/uptime").read_text().split()[0]) - started)
    except (OSError, ValueError, IndexError):
        return 0.0
