"""Changes what memory lies at an address, while all who have the address keep it."""

import ctypes
import mmap
from typing import Final

# Of Linux.
_PROT_NONE: Final = 0
_MREMAP_MAYMOVE: Final = 1
_MREMAP_FIXED: Final = 2
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
_MADV_DONTFORK: Final = 10
_FAILED: Final = ctypes.c_void_p(-1).value

_libc: Final = ctypes.CDLL(None)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.mprotect.argtypes = _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def in_pages(size: int) -> int:
    """The size of all pages that hold so many bytes."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def address_of(memory: mmap.mmap | memoryview) -> int:
    """The address of writable memory."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def map_again(begin: int, size: int, address: int) -> bool:
    """Maps shared memory at another address too, in place of what is mapped there.

    Args:
        begin: The address of a page of a shared mapping.
        size: How many bytes of it.
        address: The other address, also of a page. As many whole pages must be mapped there by their owner, who may
            unmap them later. What they held is gone.

    Returns:
        Whether it is mapped there. If not, what was there is unchanged.
    """
    # An old size of 0 makes a second mapping of the same pages, and leaves the first one.
    return bool(_libc.mremap(begin, 0, in_pages(size), _MREMAP_MAYMOVE | _MREMAP_FIXED, address) != _FAILED)


def make_private(address: int, size: int, *, writable: bool = True) -> bool:
    """Puts a private copy in place of mapped memory. Others who have mapped the same memory keep what it held.

    It is one step for the system: whoever reads the memory at the same time sees no difference.

    Args:
        address: The address of a page.
        size: The size in bytes. The pages that it begins are replaced as a whole.
        writable: Whether the copy may be written to.

    Returns:
        Whether it was replaced. If not, there is not enough memory.
    """
    length = in_pages(size)
    copy = _libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if copy == _FAILED:
        return False
    ctypes.memmove(copy, address, size)
    if not writable:
        _libc.mprotect(copy, length, mmap.PROT_READ)
    if _libc.mremap(copy, length, length, _MREMAP_MAYMOVE | _MREMAP_FIXED, address) == _FAILED:
        _libc.munmap(copy, length)
        return False
    return True


def copy_on_write(address: int, size: int, descriptor: int, offset: int) -> bool:
    """Separates mapped memory of a file from the file: what this process writes from now on stays its own.

    Unlike `make_private`, it copies pages when they are written to, so others may write to the memory at the same time
    and lose nothing. The pages that this process has not written to show what the file has.

    Args:
        address: The address of a page where a part of the file is mapped as shared.
        size: The size in bytes. The pages that it begins are separated as a whole.
        descriptor: The file.
        offset: Where the part begins in the file.

    Returns:
        Whether it was separated. If not, nothing has changed.
    """
    access, how = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
    return bool(_libc.mmap(address, in_pages(size), access, how, descriptor, offset) != _FAILED)


def reserve(size: int) -> int | None:
    """Takes a range of addresses, without memory. Returns its beginning, None if the system has none."""
    address = _libc.mmap(None, in_pages(size), _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    return None if address == _FAILED else int(address)


def unmap(address: int, size: int) -> None:
    """Gives a range of addresses back, with the memory that is mapped there."""
    _libc.munmap(address, in_pages(size))


def restrict(address: int, size: int) -> bool:
    """Makes mapped memory read-only, and keeps it from forked processes. Returns whether that was possible."""
    length = in_pages(size)
    return not (_libc.mprotect(address, length, mmap.PROT_READ) or _libc.madvise(address, length, _MADV_DONTFORK))
