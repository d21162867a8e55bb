"""Keeps glibc from giving large blocks back to the kernel after every message.

By default a message of a megabyte is mapped, faulted in page by page and unmapped again each time; that costs as much
as summing it. Raising the thresholds once, before threads start, keeps such blocks in the heap for reuse.
"""

import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

# The most that glibc takes for the mmap threshold on 64 bits.
_KEPT_BYTES: Final = 32 << 20
_TRIM_BYTES: Final = 512 << 20
_GROWTH_BYTES: Final = 16 << 20


def keep_large_blocks(*, one_arena: bool) -> bool:
    """Tunes the C allocator of this process; returns whether there is one that takes it (glibc on Linux).

    Args:
        one_arena: Whether all threads share one arena too, so that a block freed by one is there for another. Right for
            a process of psum's own; a program that psum is only a library of decides that for itself.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    options = [(_M_MMAP_THRESHOLD, _KEPT_BYTES), (_M_TRIM_THRESHOLD, _TRIM_BYTES), (_M_TOP_PAD, _GROWTH_BYTES)]
    if one_arena:
        options.append((_M_ARENA_MAX, 1))
    return all([mallopt(option, value) == 1 for option, value in options])
