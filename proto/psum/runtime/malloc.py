"""Keep glibc from returning large blocks to the kernel after every message.

By default, glibc maps and unmaps the memory of each large message, and every page faults again. That costs as much as
the sum. Higher thresholds, set once before threads start, keep such blocks in the heap for reuse.
"""

import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

# The largest mmap threshold that glibc accepts on 64 bits.
_KEPT_BYTES: Final = 32 << 20
_TRIM_BYTES: Final = 512 << 20
_GROWTH_BYTES: Final = 16 << 20


def keep_large_blocks(*, one_arena: bool) -> bool:
    """Tune the C allocator of this process, and return whether it accepted the options (glibc on Linux does).

    Args:
        one_arena: Whether all threads share one arena, so that any thread can reuse a block that another has freed. Use
            it in psum's own processes only. A program that uses psum as a library decides for itself.
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
