"""Checks of what a user passes to the store, before anything is done."""

import math
from typing import Any, NamedTuple

from psum.client import ElementType
from psum.mxnet.arrays.inspection import DENSE, UNDEFINED, element_type_of, shape_of, storage_of
from psum.mxnet.compat import mx


class Arrays(NamedTuple):
    """One or more dense NDArrays of one shape and type, each on any device.

    Attributes:
        items: The arrays, in the order given. Plain NDArrays of the same memory replace mx.np arrays.
        shape: Their shape.
        element_type: The type of their elements.
        nbytes: The size of each array in bytes.
    """

    items: list[Any]
    shape: tuple[int, ...]
    element_type: ElementType
    nbytes: int

    @classmethod
    def of(cls, value: Any, what: str) -> "Arrays":
        """Checks the arrays that a user gave.

        Args:
            value: An NDArray, or a list or tuple of them.
            what: The caller's name for it, for errors.

        Raises:
            TypeError: It is something else, sparse, or has elements that cannot be summed.
            ValueError: It is an empty list, or the arrays differ in shape or type.
        """
        items = [_dense(item, what) for item in value] if isinstance(value, list | tuple) else [_dense(value, what)]
        if not items:
            raise ValueError(f"{what} is an empty list; expected at least one NDArray")
        try:
            shape, element_type = shape_of(items[0]), element_type_of(items[0])
            for number, item in enumerate(items[1:], start=1):
                other_shape, other_type = shape_of(item), element_type_of(item)
                if other_shape != shape or other_type is not element_type:
                    raise ValueError(
                        f"{what}[0] is {element_type.label} {shape}, {what}[{number}] is {other_type.label}"
                        f" {other_shape}; expected all alike"
                    )
        except TypeError as error:
            raise TypeError(f"{what}: {error}") from None
        return cls(items, shape, element_type, math.prod(shape) * element_type.itemsize)

    @property
    def dtype(self) -> Any:
        """MXNet's type of their elements."""
        return self.items[0].dtype

    def check_like(self, other: "Arrays", what: str, what_other: str) -> None:
        """Checks that other arrays have the same shape and type.

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
    storage = storage_of(item)
    if storage == UNDEFINED:
        raise ValueError(f"{what} has an array whose shape and type are not known yet; initialize it first")
    if storage != DENSE:
        raise TypeError(f"{what} has a {item.stype} array; psum sums dense arrays only: use tostype('default')")
    # The operators of mx.nd that follow do not take an mx.np.ndarray.
    return item if type(item) is mx.nd.NDArray else item.as_nd_ndarray()
