"""Changes what memory lies at an address, while all who have the address keep it."""

import ctypes
import mmap
from typing import Final

_MAYMOVE: Final = 1
_FIXED: Final = 2
_FAILED: Final = ctypes.c_void_p(-1).value

_libc: Final = ctypes.CDLL(None, use_errno=True)
_mremap: Final = _libc["mremap"]
_mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_mremap.restype = ctypes.c_void_p
_mmap: Final = _libc["mmap"]
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_mmap.restype = ctypes.c_void_p
_munmap: Final = _libc["munmap"]
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def address_of(memory: mmap.mmap | memoryview) -> int:
    """The address of writable memory."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def map_again(memory: memoryview, address: int) -> bool:
    """Maps shared memory at another address too, in place of what is mapped there.

    Args:
        memory: A part of a shared mapping, such as a block of `Client.allocate`. It begins at a page.
        address: The other address, also of a page. As many whole pages as the memory has must be mapped there by their
            owner, who may unmap them later. What they held is gone.

    Returns:
        Whether it is mapped there. If not, what was there is unchanged.
    """
    # An old size of 0 makes a second mapping of the same pages, and leaves the first one.
    return bool(_mremap(address_of(memory), 0, len(memory), _MAYMOVE | _FIXED, address) != _FAILED)


def make_private(address: int, size: int) -> bool:
    """Puts a private copy in place of mapped memory. Others who have mapped the same memory keep what it held.

    Args:
        address: The address of a page.
        size: The size in bytes. The pages that it begins are replaced as a whole.

    Returns:
        Whether it was replaced. If not, there is not enough memory.
    """
    copy = _mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if copy == _FAILED:
        return False
    ctypes.memmove(copy, address, size)
    if _mremap(copy, size, size, _MAYMOVE | _FIXED, address) == _FAILED:
        _munmap(copy, size)
        return False
    return True
