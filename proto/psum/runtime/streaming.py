"""Copies that go past the processor's caches. See streaming.c, which an installation compiles if it has a compiler."""

import ctypes
import functools
import pathlib
from collections.abc import Callable
from typing import Final

import numpy as np

#: Copies bytes. The first argument is the target: writable, as large as the second, and apart from it.
Copy = Callable[[memoryview, memoryview], None]

#: Where hatch_build.py puts the library.
LIBRARY: Final = pathlib.Path(__file__).with_name("libpsum_streaming.so")


@functools.cache
def streaming_copy() -> Copy | None:
    """Return the function that copies with streaming stores, None where there is none.

    An installation without a C compiler, or for a processor other than x86-64, has none.
    """
    try:
        # Keeps the interpreter's lock, as the copying of a memoryview does. A thread that gives it up gets it back
        # after up to 5 ms if another one computes in Python.
        copy = ctypes.PyDLL(str(LIBRARY)).psum_streaming_copy
    except (OSError, AttributeError):
        return None
    copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    copy.restype = None

    def stream(target: memoryview, source: memoryview) -> None:
        size = len(target)
        if size != len(source) or target.readonly:
            raise ValueError(f"{len(source)} bytes cannot be copied to {size} bytes")
        copy(_address(target), _address(source), size)

    return stream


def _address(memory: memoryview) -> int:
    return np.frombuffer(memory, np.uint8).ctypes.data
