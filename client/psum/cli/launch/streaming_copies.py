"""Large copies that go past the processor's caches, in processes that psum starts.

A processor that stores to memory outside its caches first reads what it overwrites, unless the store is a streaming
one. glibc's memcpy uses streaming stores for copies larger than a part of the last cache. In a virtual machine it takes
the cache of the whole host for that of the machine, so it hardly ever does.
"""

import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Final

#: Where glibc finds its settings when a process starts.
VARIABLE: Final = "GLIBC_TUNABLES"

#: Less than a shard, which is 2 MiB, and more than what a program copies again and again within its caches.
_SMALLEST_BYTES: Final = 1 << 20

_TUNABLES: Final = f"glibc.cpu.x86_non_temporal_threshold={_SMALLEST_BYTES:#x}"

#: On AMD's processors streaming stores cost as much as others; docs/performance.md has the measurements.
_VENDOR: Final = "GenuineIntel"

_CPUINFO: Final = pathlib.Path("/proc/cpuinfo")


def streaming_environment(
    plane: str, environ: Mapping[str, str] = os.environ, cpuinfo: pathlib.Path = _CPUINFO
) -> dict[str, str]:
    """Return the variable that makes workers copy past the caches, where that has been seen to cost less.

    That is on Intel's processors, for sums that workers copy out of shared memory.

    Args:
        plane: How the job's payloads cross: auto, shm, direct or inline.
        environ: The variables that the workers inherit. Settings of glibc's that the user made stay as they are.
        cpuinfo: What describes this machine's processors.
    """
    if plane not in ("auto", "shm") or VARIABLE in environ or platform.libc_ver()[0] != "glibc":
        return {}
    return {VARIABLE: _TUNABLES} if vendor(cpuinfo) == _VENDOR else {}


def vendor(cpuinfo: pathlib.Path = _CPUINFO) -> str:
    """Return the vendor of this machine's processors, such as 'GenuineIntel'; empty if it is not known."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
