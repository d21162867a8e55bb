"""The memory of NDArrays: its place, its layout, and its bytes."""

import ctypes
from typing import Any, Final

from psum.mxnet.arrays.dlpack import address_of
from psum.mxnet.compat import QUICK, mx

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


_reorder: Final = _find_reorder()

#: False if this library may use oneDNN and has no function to bring its results into the plain layout. Then only a copy
#: of an array has the plain layout for certain.
LAYOUT_CAN_BE_SET: Final[bool] = _reorder is not None or not any(
    feature.enabled for name, feature in mx.runtime.Features().items() if name in ("MKLDNN", "ONEDNN")
)


def usable_in_place(context: Any) -> bool:
    """Returns whether arrays of a context can be read and written in place, without a copy."""
    return LAYOUT_CAN_BE_SET and context.device_type in ("cpu", "cpu_pinned", "cpu_shared")


def queue_plain_layout(array: Any) -> None:
    """Queues a change of an array in host memory into the plain layout, once its value is there.

    oneDNN's operators, such as convolutions, may leave their results in a layout of their own, which only oneDNN can
    read. While the operation that writes an array is pending, nobody can know its layout, so this always queues the
    change. It costs almost nothing if there is nothing to change, does not wait, and changes no value.
    """
    if _reorder is not None:
        _reorder(array.handle)
