"""Makes and removes network namespaces, including those that a killed process left behind."""

import contextlib
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import time
from typing import Final

from tests.process_stat import is_running, stat_fields

#: Names begin with this. The owner's process id and start time, a number and a kind follow.
_PREFIX: Final = "psum-netlab-"

#: How long one command of iproute2 may take.
_COMMAND_SECONDS: Final = 30.0

#: How long killed processes may take to disappear.
_ENDING_SECONDS: Final = 5.0

_SHARED_MEMORY: Final = pathlib.Path("/dev/shm")

_numbers: Final = itertools.count()


class LabError(Exception):
    """The lab cannot do what was asked. The text says why, and what to do."""


def check() -> None:
    """Checks that the lab can run here: makes a network namespace and removes it again.

    Raises:
        LabError: This user or this machine cannot have network namespaces.
    """
    if os.geteuid() != 0:
        raise LabError("network namespaces need root: run this as root, for example with sudo")
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            raise LabError(
                f"there is no program {program!r}: install iproute2 (Debian, Ubuntu: apt-get install iproute2)"
            )
    name = make("check")
    try:
        # Some containers allow namespaces but no traffic control or no bridges.
        ip("-n", name, "link", "add", "br0", "type", "bridge")
        tc("-n", name, "qdisc", "add", "dev", "br0", "root", "tbf", "rate", "1mbit", "burst", "10kb", "limit", "10kb")
    finally:
        remove(name)


def make(kind: str) -> str:
    """Makes a namespace that this process owns, and returns its unique name.

    Raises:
        LabError: This machine does not allow it. Most containers do not.
    """
    name = f"{_PREFIX}{os.getpid()}-{_start_time(os.getpid())}-{next(_numbers)}-{kind}"
    ip("netns", "add", name)
    return name


def remove(name: str) -> None:
    """Kills all processes in a namespace, and removes it with its shared memory. Removing it twice is no error."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while (pids := processes(name)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # The kernel does not notify us when other processes have left a namespace.
        time.sleep(0.01)
    _run("ip", "netns", "delete", name)
    shutil.rmtree(shared_memory(name), ignore_errors=True)


def sweep() -> list[str]:
    """Removes namespaces whose owner ended without removing them, as after SIGKILL; returns their names."""
    left = [name for name, owner in existing().items() if owner is None]
    for name in left:
        remove(name)
    return left


def existing() -> dict[str, int | None]:
    """Returns the owner's process id for each namespace of a lab, by name; None if the owner has ended.

    This includes namespaces that have left only their shared memory.
    """
    names = {line.split()[0] for line in _run("ip", "netns", "list").stdout.splitlines() if line.strip()}
    names |= {entry.name for entry in _SHARED_MEMORY.iterdir()}
    return {name: _owner(name) for name in sorted(names) if name.startswith(_PREFIX)}


def shared_memory(name: str) -> pathlib.Path:
    """The directory of a namespace's shared memory. `remove` deletes it with the namespace."""
    return _SHARED_MEMORY / name


def processes(name: str) -> list[int]:
    """The ids of the processes in a namespace, without zombies; none if there is no such namespace."""
    found = [int(pid) for pid in _run("ip", "netns", "pids", name).stdout.split()]
    return [pid for pid in found if is_running(pid)]


def inside(name: str, *command: str) -> list[str]:
    """Wraps a command so that it runs in a namespace."""
    return ["ip", "netns", "exec", name, *command]


def ip(*arguments: str) -> str:
    """Runs `ip` and returns its output.

    Raises:
        LabError: `ip` failed.
    """
    return _checked("ip", *arguments)


def tc(*arguments: str) -> str:
    """Runs `tc` and returns its output.

    Raises:
        LabError: `tc` failed.
    """
    return _checked("tc", *arguments)


def read(name: str, path: str) -> str:
    """Reads a file, such as /proc/net/dev, from inside a namespace."""
    return _checked(*inside(name, "cat", path))


def _checked(*command: str) -> str:
    done = _run(*command)
    if done.returncode != 0:
        raise LabError(
            f"cannot make hosts of network namespaces: `{' '.join(command)}` failed: {done.stderr.strip()}. This needs"
            " root with CAP_NET_ADMIN and CAP_SYS_ADMIN, and a kernel with veth, bridges and tbf"
        )
    return done.stdout


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        raise LabError(f"`{' '.join(command)}` did not finish within {_COMMAND_SECONDS:g} s") from None


def _owner(name: str) -> int | None:
    pid, start_time, *_ = name.removeprefix(_PREFIX).split("-")
    return int(pid) if _start_time(int(pid)) == start_time else None


def _start_time(pid: int) -> str:
    """When a process was started, in clock ticks since boot; '' if there is no such process."""
    try:
        return stat_fields(pid)[19]
    except OSError:
        return ""
