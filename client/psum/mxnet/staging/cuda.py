"""Pins host memory, so that GPUs copy from and to it directly although CUDA has not allocated it.

Call everything here in one thread that does nothing else with CUDA. CUDA acts through the current device of the calling
thread. If the process has no context on that device, CUDA makes one: hundreds of megabytes on a GPU that may belong to
another process. So these functions set the thread's current device to one that the process uses. They do not set it
back, because from CUDA 12 on that would make a context too.
"""

import ctypes
import logging
from typing import Final

from psum.cuda.runtime import error_text, runtime

_log = logging.getLogger(__name__)

#: cudaHostRegisterPortable: for all devices, not only the current one.
_PORTABLE: Final = 1
#: cudaHostRegisterReadOnly: for memory that the process may not write to.
_READ_ONLY: Final = 8


def pin(address: int, size: int, device: int) -> bool:
    """Registers memory with the CUDA runtime of this process, if there is one. Call `unpin` before unmapping it.

    Args:
        address: The address of the memory.
        size: Its size in bytes.
        device: The number of a GPU that this process uses. All of its GPUs can then use the memory.

    Returns:
        Whether the memory is pinned now. If not, copies are slower.
    """
    code = _register(address, size, device, _PORTABLE)
    if code:
        _log.warning("%d bytes of host memory cannot be pinned, which makes copies slower: %s", size, error_text(code))
    return code == 0


def pin_to_read(address: int, size: int, device: int) -> bool:
    """Does the same as `pin` for memory that this process may only read. Not every system can."""
    code = _register(address, size, device, _PORTABLE | _READ_ONLY)
    if code:
        _log.info("%d bytes of sums cannot be pinned, which makes copies slower: %s", size, error_text(code))
    return code == 0


def _register(address: int, size: int, device: int, flags: int) -> int | None:
    """Returns the error's code, 0 without an error; None without a runtime."""
    library = runtime()
    if library is None:
        return None
    code: int = library.cudaSetDevice(ctypes.c_int(device)) or library.cudaHostRegister(
        ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_uint(flags)
    )
    return code


def unpin(address: int, device: int) -> None:
    """Undoes `pin`, through the same device."""
    library = runtime()
    if library is not None:
        library.cudaSetDevice(ctypes.c_int(device))
        library.cudaHostUnregister(ctypes.c_void_p(address))
