"""The memory of NDArrays: where it is, in which layout, and as bytes."""

import ctypes
from typing import Any, Final

from psum.mxnet.arrays.dlpack import address_of
from psum.mxnet.compat import QUICK, mx

_PyMemoryView_FromMemory: Final = ctypes.pythonapi.PyMemoryView_FromMemory
_PyMemoryView_FromMemory.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_PyMemoryView_FromMemory.restype = ctypes.py_object
_PyBUF_WRITE: Final = 0x200


def flat_bytes(array: Any, nbytes: int) -> memoryview:
    """The memory of an array, as writable flat bytes.

    To be called where the engine cannot touch the array, as in an operation on it. The array must be kept for as long
    as the bytes are used: they do not keep it alive.

    Args:
        array: A dense NDArray in host memory, in the plain layout.
        nbytes: Its size.

    Raises:
        MXNetError: It is in a layout of oneDNN's.
    """
    if nbytes == 0:
        return memoryview(bytearray())
    view: memoryview = _PyMemoryView_FromMemory(address_of(array), nbytes, _PyBUF_WRITE)
    return view


def _find_reorder() -> Any:
    """mxnet::NDArray::Reorder2DefaultAsync() const, or None in a library that has no such function."""
    try:
        function = QUICK["_ZNK5mxnet7NDArray20Reorder2DefaultAsyncEv"]
    except AttributeError:
        return None
    function.argtypes, function.restype = [ctypes.c_void_p], None
    return function


_reorder: Final = _find_reorder()

#: False where oneDNN may be at work in this library, and cannot be told to bring its results into the plain layout:
#: then only a copy of an array has the plain layout for sure.
LAYOUT_CAN_BE_SET: Final[bool] = _reorder is not None or not any(
    feature.enabled for name, feature in mx.runtime.Features().items() if name in ("MKLDNN", "ONEDNN")
)


def usable_in_place(context: Any) -> bool:
    """Whether the memory of a context's arrays can be read and written where it is, rather than in a copy."""
    return LAYOUT_CAN_BE_SET and context.device_type in ("cpu", "cpu_pinned", "cpu_shared")


def queue_plain_layout(array: Any) -> None:
    """Has the engine bring an array in host memory into the plain layout, once its value is there.

    oneDNN's operators may leave their results in a layout of their own, whatever it was before: a convolution does, and
    the memory of such an array means nothing to others. Whether an array is in such a layout cannot be known while the
    operation that writes it is pending, so the order to change it is given always. It costs next to nothing where there
    is nothing to change, does not wait, and changes no value.
    """
    if _reorder is not None:
        _reorder(array.handle)
