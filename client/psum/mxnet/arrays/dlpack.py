"""NDArrays and memory, by way of DLPack: where the memory of an array is, and arrays in memory of one's own.

Nothing here waits for MXNet's engine.
"""

import contextlib
import ctypes
from typing import Any, Final

from psum.client import ElementType
from psum.mxnet.compat import MAJOR_VERSION, QUICK, check_call, mx

_CPU: Final = 1


class _Tensor(ctypes.Structure):
    """A tensor as DLPack describes it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int),
        ("device_id", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    """A tensor, and what to call when nobody uses it any more."""

    _fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


def address_of(array: Any) -> int:
    """Where the elements of an array begin.

    Args:
        array: A dense NDArray in host memory, not empty, in the plain layout.

    Raises:
        MXNetError: It is in a layout of oneDNN's.
    """
    # MXNDArrayGetData would wait for the engine, for ever in an operation on the array; this never waits.
    managed = ctypes.c_void_p()
    check_call(QUICK.MXNDArrayToDLPack(array.handle, ctypes.byref(managed)))
    try:
        tensor = _Tensor.from_address(managed.value or 0)
        address: int = tensor.data + tensor.byte_offset
    finally:
        check_call(QUICK.MXNDArrayCallDLPackDeleter(managed))
    return address


def array_at(address: int, shape: tuple[int, ...], element_type: ElementType) -> Any:
    """A new NDArray on cpu(0) whose elements lie in memory of the caller's.

    MXNet's own `from_numpy` knows the types of NumPy only, and of those not all that MXNet has. The engine's threads
    also call Python for it when they are done with the memory, maybe while a fork waits for them and holds the
    interpreter's lock. Here nobody is called.

    Args:
        address: Where the elements begin. The memory must stay as long as the array and what the engine has queued for
            it.
        shape: The shape of the array.
        element_type: Their type.

    Raises:
        MXNetError: MXNet did not take it.
    """
    # Of at least one item, so that it has an address.
    sizes = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    code, bits = element_type.kind, 8 * element_type.itemsize
    tensor = _Tensor(address, _CPU, 0, len(shape), code, bits, 1, ctypes.addressof(sizes), None, 0)
    handle = ctypes.c_void_p()
    # An array without dimensions is one of unknown shape otherwise.
    with mx.util.np_shape(True) if shape == () else contextlib.nullcontext():
        # True: MXNet makes a copy of the description.
        description = ctypes.byref(_ManagedTensor(tensor, None, None))
        check_call(_from_dlpack(description, ctypes.c_bool(True), ctypes.byref(handle)))
    return mx.nd.NDArray(handle)


_from_dlpack: Final = QUICK["MXNDArrayFromDLPack" if MAJOR_VERSION >= 2 else "MXNDArrayFromDLPackEx"]
