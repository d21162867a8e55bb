"""Finds the CUDA runtime of this process, and calls it without its framework."""

import ctypes
import functools
import pathlib
import re
from typing import Any, Final

_LIBRARY: Final = re.compile(r"\S*/libcudart\S*\.so\S*")


@functools.cache
def runtime() -> Any:
    """Returns the runtime that the process has loaded, or the system's; None if there is none, or no device."""
    mapped = _LIBRARY.search(pathlib.Path("/proc/self/maps").read_text())
    try:
        library = ctypes.CDLL(mapped[0] if mapped else "libcudart.so")
        devices = ctypes.c_int(0)
        if library.cudaGetDeviceCount(ctypes.byref(devices)) or not devices.value:
            return None
        library.cudaGetErrorString.restype = ctypes.c_char_p
    except (OSError, AttributeError):
        return None
    return library


def that_keeps_the_lock(library: Any) -> Any:
    """Returns a runtime whose calls keep the interpreter's lock, for calls that do not wait for a device.

    Such a call takes microseconds. Getting the lock back takes milliseconds if other threads compute.

    Args:
        library: The runtime.
    """
    return ctypes.PyDLL(library._name, handle=library._handle)


def error_text(code: int) -> str:
    """Returns what an error of the runtime means, for people."""
    text: bytes = runtime().cudaGetErrorString(code) or b""
    return text.decode(errors="replace")
