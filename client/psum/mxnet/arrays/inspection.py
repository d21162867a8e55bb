"""What an NDArray is: its storage, shape, type and device, asked for without giving up the interpreter's lock.

MXNet's own properties give it up in each call. Then one of the engine's threads takes it, to run an operation of
psum's, and the training loop waits for it, several times for each key.
"""

import ctypes
from typing import Any, Final

import numpy as np

from psum.client import ElementType
from psum.mxnet.compat import MAJOR_VERSION, QUICK, check_call

_get_storage: Final = QUICK["MXNDArrayGetStorageType"]
_get_shape: Final = QUICK["MXNDArrayGetShape64" if MAJOR_VERSION >= 2 else "MXNDArrayGetShapeEx64"]
_get_type: Final = QUICK["MXNDArrayGetDType"]
_get_context: Final = QUICK["MXNDArrayGetContext"]

#: mxnet::NDArrayStorageType.
UNDEFINED, DENSE = -1, 0

#: mshadow's numbers of those element types that can be summed.
_ELEMENT_TYPES: Final = {
    0: ElementType.FLOAT32,
    1: ElementType.FLOAT64,
    2: ElementType.FLOAT16,
    3: ElementType.UINT8,
    4: ElementType.INT32,
    5: ElementType.INT8,
    6: ElementType.INT64,
    12: ElementType.BFLOAT16,
}


def storage_of(array: Any) -> int:
    """The number of an array's storage type."""
    found = ctypes.c_int()
    check_call(_get_storage(array.handle, ctypes.byref(found)))
    return found.value


def shape_of(array: Any) -> tuple[int, ...]:
    """The shape of a dense array."""
    dimensions, sizes = ctypes.c_int(), ctypes.POINTER(ctypes.c_int64)()
    check_call(_get_shape(array.handle, ctypes.byref(dimensions), ctypes.byref(sizes)))
    return tuple(sizes[: dimensions.value])


def element_type_of(array: Any) -> ElementType:
    """The type of its elements.

    Raises:
        TypeError: They cannot be summed.
    """
    found = ctypes.c_int()
    check_call(_get_type(array.handle, ctypes.byref(found)))
    known = _ELEMENT_TYPES.get(found.value)
    return ElementType.of(np.dtype(array.dtype)) if known is None else known


def context_of(array: Any) -> Any:
    """The device that it is on, as an mx.Context."""
    kind, number = ctypes.c_int(), ctypes.c_int()
    check_call(_get_context(array.handle, ctypes.byref(kind), ctypes.byref(number)))
    context = _contexts.get((kind.value, number.value))
    if context is None:
        context = _contexts[kind.value, number.value] = array.context
    return context


_contexts: Final[dict[tuple[int, int], Any]] = {}
"""Those that were asked for, by kind and number of the device."""
