"""What a worker says about its process."""

import os
import pathlib
import socket

pid = os.getpid()
"""This process, known without a call of the system."""


def _forked() -> None:
    global pid
    pid = os.getpid()


os.register_at_fork(after_in_child=_forked)


def name() -> str:
    """Where this process runs, for people."""
    return f"{socket.gethostname()} pid {pid}"


def age_seconds() -> float:
    """How long ago this process was started; 0 where the system does not say."""
    try:
        # The command in the second field may contain anything but ends at the last parenthesis; field 22 is the start.
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, float(pathlib.Path("/proc/uptime").read_text().split()[0]) - started)
    except (OSError, ValueError, IndexError):
        return 0.0
