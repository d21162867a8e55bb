"""Tensors of any library with the buffer protocol, as flat bytes with a shape and an element type."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from psum.wire import ElementType

#: C-contiguous memory that `flat` turns into bytes. Waiting operations keep arrays rather than views of bytes: the
#: garbage collector does not track an array, but tracks two objects for each view.
Memory = memoryview | npt.NDArray[Any]


def flat(memory: Memory) -> memoryview:
    """The memory as flat bytes."""
    return memory if isinstance(memory, memoryview) else memory.data.cast("B")


#: The type letters of the buffer protocol for the storage of all element types.
_LETTERS: Final = frozenset(
    letter
    for letter in np.typecodes["AllInteger"] + np.typecodes["AllFloat"]
    if np.dtype(letter) in {element_type.numpy for element_type in ElementType}
)


class Buffer(NamedTuple):
    """A tensor in the caller's memory.

    Attributes:
        memory: The memory. It keeps its owner alive.
        shape: The tensor's shape.
        element_type: The type of its elements.
    """

    memory: Memory
    shape: tuple[int, ...]
    element_type: ElementType

    @classmethod
    def of(cls, value: Any, what: str, element_type: object = None, *, writable: bool = False) -> "Buffer":
        """A view of an object's memory.

        Args:
            value: A C-contiguous array, memoryview, bytearray, array.array, …, or bytes if it is only read.
            what: The name of the value in errors.
            element_type: The type of the elements if the object does not tell it, such as bfloat16 kept in uint16.
            writable: Whether it will be written to.

        Raises:
            TypeError: The object has no buffer, or elements that cannot be summed.
            ValueError: It is not contiguous, or it is read-only and will be written to.
        """
        if not isinstance(value, np.ndarray):
            given: Any = value
            try:
                value = np.asarray(memoryview(given))
            except (TypeError, ValueError) as error:
                raise TypeError(f"{what} is a {type(given).__name__}, which has no usable buffer: {error}") from None
        dtype, flags = value.dtype, value.flags
        kind = ElementType.of(dtype if element_type is None else element_type)
        if dtype.itemsize != kind.itemsize:
            raise TypeError(
                f"{what} has elements of {dtype.itemsize} bytes, {kind.label} has {kind.itemsize}; pass the element"
                " type that they are of"
            )
        if dtype.byteorder == ">":
            raise TypeError(
                f"{what} is big endian; psum sums little endian elements:"
                " pass value.astype(value.dtype.newbyteorder('<'))"
            )
        if not flags.c_contiguous:
            raise ValueError(f"{what} of shape {value.shape} is not C-contiguous; pass a contiguous copy")
        if writable and not flags.writeable:
            raise ValueError(
                f"{what} is read-only, and the result is to be written to it; pass one that is not, or a copy"
            )
        shape = value.shape
        if dtype.char not in _LETTERS or not value.size:
            # Neither an empty array nor a type without a letter can be cast to bytes.
            value = (value.reshape(-1).view(np.uint8) if value.size else np.empty(0, np.uint8)).data
        # What NamedTuple's own constructor does, without its overhead.
        return tuple.__new__(cls, (value, shape, kind))
