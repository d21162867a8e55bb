"""The number of processors that this process may use, by its affinity and the limits of its control groups."""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Final

_ROOT: Final = pathlib.Path("/")

#: How many processors one process of an aggregator keeps busy, with the threads that sum for it and the workers that
#: may be on the same machine, and the most processes that an aggregator has by itself.
_PROCESSORS_EACH: Final = 4
_MAX_PROCESSES: Final = 8


def processors() -> int:
    """Return the number of processors that this process may keep busy, at least 1.

    A limit of processor time is rounded down: with one more thread, the kernel would stop all threads for a part of
    each period.
    """
    return within_limits(len(os.sched_getaffinity(0)), cpu_limits(_ROOT))


def sensible_processes(usable: int) -> int:
    """Return how many processes an aggregator should have on a machine with so many usable processors."""
    return max(1, min(_MAX_PROCESSES, usable // _PROCESSORS_EACH))


def within_limits(affinity: int, limits: Iterator[float]) -> int:
    """Return the number of processors for an affinity within limits of processor time, at least 1."""
    return max(1, int(min((affinity, *limits))))


def cpu_limits(root: pathlib.Path) -> Iterator[float]:
    """Return the limits of this process's control group and of each enclosing group, in processors.

    Args:
        root: The directory that contains `proc` and the mounts that it lists.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    paths: dict[str, str] = {}
    for line in groups:
        # hierarchy:controllers:path. Version 2 has number 0 and lists no controllers.
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    for line in mounts:
        own, _, rest = line.partition(" - ")
        _, _, _, mounted, point, *_ = own.split(" ")
        kind, _, options = rest.split(" ", 2)
        if kind in paths and (kind == "cgroup2" or "cpu" in options.split(",")):
            top = root / _unescaped(point).lstrip("/")
            for directory in _upwards(top, _unescaped(mounted), paths[kind]):
                limit = _limit(directory)
                if limit is not None:
                    yield limit


def _upwards(top: pathlib.Path, mounted: str, path: str) -> Iterator[pathlib.Path]:
    """Return the directories of a group and of its enclosing groups, as far as they are visible.

    Args:
        top: The mount point of the hierarchy.
        mounted: The group that is mounted there.
        path: The process's group.
    """
    within = pathlib.PurePosixPath(path)
    # In a container, the path may be the host's. Only the mounted part of it is visible.
    if within.is_relative_to(mounted) and ".." not in within.parts:
        directory = top / within.relative_to(mounted)
        while directory != top:
            yield directory
            directory = directory.parent
    yield top


def _limit(directory: pathlib.Path) -> float | None:
    """Return the number of processors that a group may keep busy, or None without a limit."""
    try:
        if (directory / "cpu.max").exists():
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota = (directory / "cpu.cfs_quota_us").read_text()
            period = (directory / "cpu.cfs_period_us").read_text()
        limit = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        # This includes "max", which means no limit, and the root of version 2, which has no such file.
        return None
    return limit if limit > 0 else None


def _unescaped(text: str) -> str:
    r"""Decode a path from mountinfo, which writes spaces and some other characters in octal, such as \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
