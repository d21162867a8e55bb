"""NDArrays and memory through DLPack: finds the memory of an array, and makes arrays in memory of the caller's.

Nothing here waits for MXNet's engine.
"""

import contextlib
import ctypes
from typing import Any, Final

from psum.client import ElementType
from psum.mxnet.compat import MAJOR_VERSION, QUICK, check_call, mx

_CPU: Final = 1


class _Tensor(ctypes.Structure):
    """DLPack's description of a tensor."""

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


_Words: Final = ctypes.c_uint64 * (ctypes.sizeof(_Tensor) // 8)
_DATA: Final = _Tensor.data.offset // 8
_BYTE_OFFSET: Final = _Tensor.byte_offset.offset // 8

_to_dlpack: Final = QUICK["MXNDArrayToDLPack"]
_free: Final = QUICK["MXNDArrayCallDLPackDeleter"]


class ManagedTensor(ctypes.Structure):
    """A tensor, and the function to call when it is no longer used."""

    _fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


def address_of(array: Any) -> int:
    """Returns the address of an array's first element.

    Args:
        array: A dense NDArray in host memory, not empty, in the plain layout.

    Raises:
        MXNetError: It has a layout of oneDNN's.
    """
    # MXNDArrayGetData would wait for the engine: in an operation on the array, a deadlock. This never waits.
    managed = ctypes.c_void_p()
    if _to_dlpack(array.handle, ctypes.byref(managed)):
        check_call(-1)
    # Words of memory are found in half the time of a structure's fields.
    words = _Words.from_address(managed.value or 0)
    address: int = words[_DATA] + words[_BYTE_OFFSET]
    _free(managed)
    return address


def array_at(address: int, shape: tuple[int, ...], element_type: ElementType) -> Any:
    """Makes an NDArray on cpu(0) in memory of the caller's.

    MXNet's own `from_numpy` knows only types of NumPy, and not all of those that MXNet has. Also, the engine's threads
    call Python when they have finished with its memory, perhaps while a fork waits for them with the interpreter's lock
    held. Here they do not call Python.

    Args:
        address: The address of the first element. The memory must outlive the array and everything that the engine has
            queued for it.
        shape: The shape of the array.
        element_type: The type of its elements.

    Raises:
        MXNetError: MXNet did not take it.
    """
    # At least one item, so that it has an address.
    sizes = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    tensor = described(address, sizes, element_type)
    tensor.ndim = len(shape)
    description = ManagedTensor(tensor, None, None)
    # Without np_shape, an array without dimensions has an unknown shape.
    with mx.util.np_shape(True) if shape == () else contextlib.nullcontext():
        return from_dlpack(ctypes.addressof(description), copies=True)


def described(address: int, sizes: "ctypes.Array[ctypes.c_int64]", element_type: ElementType) -> _Tensor:
    """Describes an array in host memory.

    Args:
        address: The address of the first element.
        sizes: The shape, which must live as long as the description.
        element_type: The type of its elements.
    """
    code, bits = element_type.kind, 8 * element_type.itemsize
    return _Tensor(address, _CPU, 0, len(sizes), code, bits, 1, ctypes.addressof(sizes), None, 0)


def from_dlpack(description: int, *, copies: bool) -> Any:
    """Makes an NDArray on cpu(0) of a description.

    Args:
        description: The address of a ManagedTensor.
        copies: Whether MXNet copies the description. If not, it must live until MXNet calls its deleter.

    Raises:
        MXNetError: MXNet did not take it.
    """
    handle = ctypes.c_void_p()
    check_call(_from_dlpack(ctypes.c_void_p(description), ctypes.c_bool(copies), ctypes.byref(handle)))
    return mx.nd.NDArray(handle)


_from_dlpack: Final = QUICK["MXNDArrayFromDLPack" if MAJOR_VERSION >= 2 else "MXNDArrayFromDLPackEx"]
