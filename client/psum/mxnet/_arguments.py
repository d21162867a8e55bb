"""What a user may pass to the store, checked before anything is done."""

import dataclasses
import math
from typing import Any, Final

import numpy as np

from psum.client import ElementType
from psum.mxnet._compat import mx

#: How MXNet writes the dtype of its bfloat16 arrays, for which NumPy has no type.
_BFLOAT16: Final = np.dtype([("bfloat16", np.uint16)])


@dataclasses.dataclass(frozen=True, slots=True)
class Arrays:
    """Dense NDArrays of one shape and type, at least one, each on any device.

    Attributes:
        items: The arrays, in the order given. (NumPy-like arrays are replaced by plain NDArrays of the same memory.)
        shape: Their shape.
        dtype: The type of their elements, as MXNet has it.
        element_type: The same, as psum has it.
        nbytes: The size of each of them.
    """

    items: list[Any]
    shape: tuple[int, ...]
    dtype: Any
    element_type: ElementType
    nbytes: int

    @classmethod
    def of(cls, value: Any, what: str) -> "Arrays":
        """The arrays that a user gave.

        Args:
            value: An NDArray, or a list or tuple of them.
            what: What the caller calls it, for errors.

        Raises:
            TypeError: It is something else, sparse, or of elements that cannot be summed.
            ValueError: It is an empty list, or one of arrays that differ.
        """
        items = [_dense(item, what) for item in (value if isinstance(value, list | tuple) else [value])]
        if not items:
            raise ValueError(f"{what} is an empty list; expected at least one NDArray")
        # Each look at an array's shape or type is a call of MXNet's.
        shape, dtype = items[0].shape, items[0].dtype
        for number, item in enumerate(items[1:], start=1):
            other_shape, other_dtype = item.shape, item.dtype
            if other_shape != shape or other_dtype != dtype:
                raise ValueError(
                    f"{what}[0] is {np.dtype(dtype).name} {shape}, {what}[{number}] is {np.dtype(other_dtype).name}"
                    f" {other_shape}; expected all alike"
                )
        try:
            element_type = ElementType.BFLOAT16 if dtype == _BFLOAT16 else ElementType.of(dtype)
        except TypeError as error:
            raise TypeError(f"{what}: {error}") from None
        return cls(items, shape, dtype, element_type, math.prod(shape) * element_type.itemsize)

    def check_like(self, other: "Arrays", what: str, what_other: str) -> None:
        """Checks that other arrays are of the same shape and type.

        Raises:
            ValueError: They are not.
        """
        if (self.shape, self.element_type) != (other.shape, other.element_type):
            raise ValueError(
                f"{what} is {self.element_type.label} {self.shape}, {what_other} is {other.element_type.label}"
                f" {other.shape}; expected both alike"
            )


def _dense(item: Any, what: str) -> Any:
    if not isinstance(item, mx.nd.NDArray):
        raise TypeError(f"{what} has a {type(item).__name__}; expected an NDArray or a list of NDArrays")
    stype = item.stype
    if stype == "undefined":
        raise ValueError(f"{what} has an array whose shape and type are not known yet; initialize it first")
    if stype != "default":
        raise TypeError(f"{what} has a {stype} array; psum sums dense arrays only: use tostype('default')")
    # The operators of mx.nd, which are to follow, take no mx.np.ndarray.
    return item if type(item) is mx.nd.NDArray else item.as_nd_ndarray()
