"""The memory of NDArrays: its place, its layout, and its bytes."""

import ctypes
import functools
import os
from typing import Any, Final

from psum.mxnet.arrays.dlpack import address_of
from psum.mxnet.compat import LIB, QUICK, mx

_PyMemoryView_FromMemory: Final = ctypes.pythonapi.PyMemoryView_FromMemory
_PyMemoryView_FromMemory.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_PyMemoryView_FromMemory.restype = ctypes.py_object
_PyBUF_WRITE: Final = 0x200


def flat_bytes(array: Any, nbytes: int) -> memoryview:
    """Returns the memory of an array as writable flat bytes.

    Call it where the engine cannot touch the array, such as in an operation on it. Keep the array while the bytes are
    in use: they do not keep it alive.

    Args:
        array: A dense NDArray in host memory, in the plain layout.
        nbytes: Its size in bytes.

    Raises:
        MXNetError: It has a layout of oneDNN's.
    """
    return bytes_at(address_of(array), nbytes) if nbytes else memoryview(bytearray())


def bytes_at(address: int, nbytes: int) -> memoryview:
    """Returns memory as writable flat bytes, which do not keep it alive."""
    view: memoryview = _PyMemoryView_FromMemory(address, nbytes, _PyBUF_WRITE)
    return view


def _find_reorder() -> Any:
    """Returns mxnet::NDArray::Reorder2DefaultAsync() const; None if the library does not have it."""
    try:
        function = QUICK["_ZNK5mxnet7NDArray20Reorder2DefaultAsyncEv"]
    except AttributeError:
        return None
    function.argtypes, function.restype = [ctypes.c_void_p], None
    return function


def _word_at(address: int) -> int:
    return ctypes.c_size_t.from_address(address).value


@functools.cache
def _immediate_reorder() -> Any:
    """Returns mxnet::NDArray::Chunk::Reorder2Default(); None if the library does not have it or chunks are not found.

    It makes an array and looks at it, which starts MXNet's engine. So the first store calls it, and not the import of
    psum.mxnet. Nor does the first sum: another thread might fork meanwhile, and MXNet would wait for ever, because only
    psum's own operations are held back during a fork.

    An array's chunk is what its views share: the memory, and its layout. Every MXNet so far has the pointer to it first
    in an NDArray, and the pointer to the memory first in a chunk.
    """
    try:
        # It may take long, so other threads may run.
        function = LIB["_ZN5mxnet7NDArray5Chunk15Reorder2DefaultEv"]
        array = mx.nd.zeros((1,))
        array.wait_to_read()
        # Not read as memory: what is not an address raises an OSError then.
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            memory_of_chunk = os.pread(memory.fileno(), 8, _word_at(array.handle.value))
    except (AttributeError, OSError, OverflowError):
        return None
    if memory_of_chunk != address_of(array).to_bytes(8, "little"):
        return None
    function.argtypes, function.restype = [ctypes.c_void_p], None
    return function


_reorder: Final = _find_reorder()
#: False if this library may use oneDNN and has no function to bring its results into the plain layout. Then only a copy
#: of an array has the plain layout for certain.
LAYOUT_CAN_BE_SET: Final[bool] = _reorder is not None or not any(
    feature.enabled for name, feature in mx.runtime.Features().items() if name in ("MKLDNN", "ONEDNN")
)


def usable_in_place(context: Any) -> bool:
    """Returns whether arrays of a context can be read and written in place, without a copy."""
    return LAYOUT_CAN_BE_SET and context.device_type in ("cpu", "cpu_pinned", "cpu_shared")


def layout_can_be_set_at_once() -> bool:
    """Returns whether `set_plain_layout` can be used. Otherwise only `queue_plain_layout`.

    Call it first where the engine may be waited for and no other thread forks, so not in an operation or a sum.
    """
    return _immediate_reorder() is not None


def queue_plain_layout(array: Any) -> None:
    """Queues a change of an array in host memory into the plain layout, once its value is there.

    oneDNN's operators, such as convolutions, may leave their results in a layout of their own, which only oneDNN can
    read. While the operation that writes an array is pending, nobody can know its layout, so this always queues the
    change. It costs almost nothing if there is nothing to change, does not wait, and changes no value.
    """
    if _reorder is not None:
        _reorder(array.handle)


def set_plain_layout(array: Any) -> None:
    """Changes an array in host memory into the plain layout at once. May take long, and may move its memory.

    Call it where the engine cannot touch the array, such as in an operation that writes it. Where a queued change costs
    an operation of the engine, this costs nothing for the arrays that need no change: those that have an address.
    """
    _immediate_reorder()(_word_at(array.handle.value))
