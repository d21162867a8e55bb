"""Host memory that GPUs copy from and to without a detour, though it is not CUDA that has allocated it.

All of it is to be called in one thread that does nothing else with CUDA. CUDA acts through the current device
of the calling thread, and makes a context there where the process has none: hundreds of megabytes of a GPU that may be
another process's. So the thread's current device is set to one that the process uses. It is not set back, since from
CUDA 12 on that would make a context too.
"""

import ctypes
import functools
import logging
import pathlib
import re
from typing import Any, Final

_log = logging.getLogger(__name__)

#: cudaHostRegisterPortable: for all devices, not only the current one.
_PORTABLE: Final = 1

_LIBRARY: Final = re.compile(r"\S*/libcudart\S*\.so\S*")


def pin(address: int, size: int, device: int) -> bool:
    """Registers memory with the CUDA runtime of this process, if there is one. `unpin` must come before it is unmapped.

    Args:
        address: Where the memory begins.
        size: Its size in bytes.
        device: The number of a GPU that this process uses. All of its GPUs can then use the memory.

    Returns:
        Whether it is pinned now. Where it is not, copies work all the same, more slowly.
    """
    runtime = _runtime()
    if runtime is None:
        return False
    code = runtime.cudaSetDevice(ctypes.c_int(device)) or runtime.cudaHostRegister(
        ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_uint(_PORTABLE)
    )
    if code:
        reason = (runtime.cudaGetErrorString(code) or b"").decode(errors="replace")
        _log.warning("%d bytes of host memory cannot be pinned, which makes copies slower: %s", size, reason)
    return not code


def unpin(address: int, device: int) -> None:
    """Has CUDA forget what `pin` has registered, by the same device."""
    runtime = _runtime()
    if runtime is not None:
        runtime.cudaSetDevice(ctypes.c_int(device))
        runtime.cudaHostUnregister(ctypes.c_void_p(address))


@functools.cache
def _runtime() -> Any:
    """The runtime that MXNet has loaded, or one of the system's; None where there is none, or no device for it."""
    mapped = _LIBRARY.search(pathlib.Path("/proc/self/maps").read_text())
    try:
        runtime = ctypes.CDLL(mapped[0] if mapped else "libcudart.so")
        devices = ctypes.c_int(0)
        if runtime.cudaGetDeviceCount(ctypes.byref(devices)) or not devices.value:
            return None
        runtime.cudaGetErrorString.restype = ctypes.c_char_p
    except (OSError, AttributeError):
        return None
    return runtime
