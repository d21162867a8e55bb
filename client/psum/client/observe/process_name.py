"""What a worker tells about its process."""

import os
import pathlib
import socket
import time
from typing import Final

#: The first namespace of process ids, which is the host's. Linux gives it this number in include/linux/proc_ns.h.
_HOST_NAMESPACE: Final = "pid:[4026531836]"

pid = os.getpid()
"""The id of this process, cached: os.getpid is a system call."""
_name = ""
"""The name of this process, once somebody has asked for it."""


def _forked() -> None:
    global pid, _name
    pid, _name = os.getpid(), ""


os.register_at_fork(after_in_child=_forked)


def name() -> str:
    """Returns the host and pid of this process, for people.

    In a container the name also has the start of the process, as UTC. Otherwise a container that replaces another one
    would have the same name: the host's name can be that of the pod, and each container counts its processes from 1.
    """
    global _name
    if not _name:
        # Only once: the computed start differs a little each time, and with it perhaps the second.
        started = time.gmtime(time.time() - age_seconds())
        since = time.strftime(" since %H:%M:%SZ", started) if _is_in_container() else ""
        _name = f"{socket.gethostname()} pid {pid}{since}"
    return _name


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


def _is_in_container() -> bool:
    """Whether other processes of this host may have the same pid."""
    try:
        return os.readlink("/proc/self/ns/pid") != _HOST_NAMESPACE
    except OSError:
        return pid == 1
