"""NDArrays in memory of the caller's, which learns when MXNet has finished with them."""

import ctypes
from typing import Any, Final

from psum.client import ElementType
from psum.mxnet.arrays.dlpack import ManagedTensor, described, from_dlpack

_libc: Final = ctypes.CDLL(None)
_libc.malloc.restype, _libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
_libc.free.restype, _libc.free.argtypes = None, [ctypes.c_void_p]

#: C's `time`, for MXNet to call with the description of an array when nothing uses its memory any more. It writes the
#: time to the beginning of the description, in place of the address. MXNet calls it in one of the engine's threads,
#: perhaps while a fork waits for them with the interpreter's lock held, so that it must not be a function of Python.
_mark: Final = ctypes.cast(_libc.time, ctypes.c_void_p)


class LentMemory:
    """Memory that MXNet uses for an NDArray, for arrays that share its memory, and in operations that wait.

    Args:
        address: The address of the first element. The memory must not be freed before `is_returned`.
        shape: The shape of the array.
        element_type: The type of its elements.

    Attributes:
        address: As given.

    Raises:
        MXNetError: MXNet did not take it.
    """

    def __init__(self, address: int, shape: tuple[int, ...], element_type: ElementType) -> None:
        self.address = address
        # Not of Python: MXNet may still write there when the interpreter has ended.
        self._place = _libc.malloc(ctypes.sizeof(ManagedTensor) + 8 * len(shape))
        if not self._place:
            raise MemoryError("the description of an NDArray")
        sizes = (ctypes.c_int64 * len(shape)).from_address(self._place + ctypes.sizeof(ManagedTensor))
        sizes[:] = list(shape)
        self._description = ManagedTensor.from_address(self._place)
        self._description.tensor = described(address, sizes, element_type)
        self._description.manager, self._description.deleter = None, _mark.value
        try:
            self._array = from_dlpack(self._place, copies=False)
        except BaseException:
            _libc.free(self._place)
            raise

    def take(self) -> Any:
        """Returns the NDArray. To be called once: this keeps it no longer."""
        array, self._array = self._array, None
        return array

    def is_returned(self) -> bool:
        """Returns whether MXNet has finished with the memory. Not to be called again once it has."""
        if self._description.tensor.data == self.address:
            return False
        _libc.free(self._place)
        return True
