"""Network namespaces by name, and the removal of those that a killed process has left behind."""

import contextlib
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Final

#: Names begin with this; the process id and the start time of their owner, and a number, follow.
_PREFIX: Final = "psum-netlab-"

#: How long one command of iproute2 may take.
_COMMAND_SECONDS: Final = 30.0

#: How long killed processes may take to disappear.
_ENDING_SECONDS: Final = 5.0

_SHARED_MEMORY: Final = pathlib.Path("/dev/shm")

_numbers: Final = itertools.count()


class LabError(Exception):
    """The lab cannot do what it was asked to. The text says why, and what to do."""


def check() -> None:
    """Makes a network namespace and removes it again.

    Raises:
        LabError: That is not possible for this user or on this machine.
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
        # Some containers have namespaces but no traffic control, or no bridges.
        ip("-n", name, "link", "add", "br0", "type", "bridge")
        tc("-n", name, "qdisc", "add", "dev", "br0", "root", "tbf", "rate", "1mbit", "burst", "10kb", "limit", "10kb")
    finally:
        remove(name)


def make(kind: str) -> str:
    """Makes a namespace of this process and returns its name, which nobody else has.

    Raises:
        LabError: That is not allowed here, as in most containers.
    """
    name = f"{_PREFIX}{os.getpid()}-{_start_time(os.getpid())}-{next(_numbers)}-{kind}"
    ip("netns", "add", name)
    return name


def remove(name: str) -> None:
    """Kills what runs in a namespace, and removes the namespace and its shared memory. Removing twice is no error."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while (pids := processes(name)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # The kernel does not tell when processes of others have left a namespace.
        time.sleep(0.01)
    _run("ip", "netns", "delete", name)
    shutil.rmtree(shared_memory(name), ignore_errors=True)


def sweep() -> list[str]:
    """Removes the namespaces whose owner has ended without doing so, as after SIGKILL; returns their names."""
    left = [name for name, owner in existing().items() if owner is None]
    for name in left:
        remove(name)
    return left


def existing() -> dict[str, int | None]:
    """Namespaces of labs, or what is left of them, by name: the process id of the owner, None if it has ended."""
    names = {line.split()[0] for line in _run("ip", "netns", "list").stdout.splitlines() if line.strip()}
    names |= {entry.name for entry in _SHARED_MEMORY.iterdir()}
    return {name: _owner(name) for name in sorted(names) if name.startswith(_PREFIX)}


def shared_memory(name: str) -> pathlib.Path:
    """The directory of a namespace's shared memory. Who makes it need not remove it."""
    return _SHARED_MEMORY / name


def processes(name: str) -> list[int]:
    """The processes in a namespace, none if there is no such namespace. Zombies are left out."""
    found = [int(pid) for pid in _run("ip", "netns", "pids", name).stdout.split()]
    return [pid for pid in found if _is_running(pid)]


def inside(name: str, *command: str) -> list[str]:
    """The command that runs a command in a namespace."""
    return ["ip", "netns", "exec", name, *command]


def ip(*arguments: str) -> str:
    """Runs `ip` and returns its output.

    Raises:
        LabError: It failed.
    """
    return _checked("ip", *arguments)


def tc(*arguments: str) -> str:
    """Runs `tc` and returns its output.

    Raises:
        LabError: It failed.
    """
    return _checked("tc", *arguments)


def read(name: str, path: str) -> str:
    """The text of a file as it is in a namespace, such as /proc/net/dev."""
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
        raise LabError(f"`{' '.join(command)}` was not done after {_COMMAND_SECONDS:g} s") from None


def _owner(name: str) -> int | None:
    pid, start_time, *_ = name.removeprefix(_PREFIX).split("-")
    return int(pid) if _start_time(int(pid)) == start_time else None


def _start_time(pid: int) -> str:
    """When a process was started, in clock ticks since boot; '' if there is none."""
    return next((fields[19] for fields in _stat(pid)), "")


def _is_running(pid: int) -> bool:
    return any(fields[0] not in ("Z", "X") for fields in _stat(pid))


def _stat(pid: int) -> Iterator[list[str]]:
    """The fields of /proc/PID/stat from the state on; none if the process has ended."""
    with contextlib.suppress(OSError):
        # The command in parentheses may contain anything.
        yield pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
