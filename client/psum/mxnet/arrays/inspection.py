"""The storage, shape, type and device of an NDArray, read without releasing the interpreter's lock.

MXNet's own properties release the lock in each call. Then one of the engine's threads takes it to run an operation of
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

#: The names of MXNet's element types, in the order of mshadow's numbers.
_NAMES: Final = (
    *("float32", "float64", "float16", "uint8", "int32", "int8", "int64"),
    *("bool", "int16", "uint16", "uint32", "uint64", "bfloat16"),
)

#: The element types that psum can sum, by mshadow's numbers.
_ELEMENT_TYPES: Final = {
    number: ElementType[name.upper()] for number, name in enumerate(_NAMES) if name.upper() in ElementType.__members__
}


def storage_of(array: Any) -> int:
    """Returns the number of an array's storage type."""
    found = ctypes.c_int()
    check_call(_get_storage(array.handle, ctypes.byref(found)))
    return found.value


def shape_of(array: Any) -> tuple[int, ...]:
    """Returns the shape of a dense array."""
    dimensions, sizes = ctypes.c_int(), ctypes.POINTER(ctypes.c_int64)()
    check_call(_get_shape(array.handle, ctypes.byref(dimensions), ctypes.byref(sizes)))
    return tuple(sizes[: dimensions.value])


def element_type_of(array: Any) -> ElementType:
    """Returns the type of an array's elements.

    Raises:
        TypeError: psum cannot sum them.
    """
    found = ctypes.c_int()
    check_call(_get_type(array.handle, ctypes.byref(found)))
    known = _ELEMENT_TYPES.get(found.value)
    return ElementType.of(np.dtype(array.dtype)) if known is None else known


def context_of(array: Any) -> Any:
    """Returns the device of an array as an mx.Context."""
    kind, number = ctypes.c_int(), ctypes.c_int()
    check_call(_get_context(array.handle, ctypes.byref(kind), ctypes.byref(number)))
    context = _contexts.get((kind.value, number.value))
    if context is None:
        context = _contexts[kind.value, number.value] = array.context
    return context


_contexts: Final[dict[tuple[int, int], Any]] = {}
"""A cache by kind and number of the device."""
