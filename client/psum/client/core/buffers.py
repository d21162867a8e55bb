"""Anything that has the buffer protocol, as flat bytes with a shape and an element type."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from psum.wire import ElementType

#: Memory that is C-contiguous, in a form that `flat` makes bytes of. A view of bytes is two objects for the collector,
#: which would look again and again through those of the thousands of operations that wait; an array is none.
Memory = memoryview | npt.NDArray[Any]


def flat(memory: Memory) -> memoryview:
    """Its bytes."""
    return memory if isinstance(memory, memoryview) else memory.data.cast("B")


#: The type letters of the buffer protocol for the storage of all element types.
_LETTERS: Final = frozenset(
    letter
    for letter in np.typecodes["AllInteger"] + np.typecodes["AllFloat"]
    if np.dtype(letter) in {element_type.numpy for element_type in ElementType}
)


class Buffer(NamedTuple):
    """A tensor in somebody else's memory.

    Attributes:
        memory: The memory, whose owner it keeps alive.
        shape: Its shape.
        element_type: What its elements are.
    """

    memory: Memory
    shape: tuple[int, ...]
    element_type: ElementType

    @classmethod
    def of(cls, value: Any, what: str, element_type: object = None, *, writable: bool = False) -> "Buffer":
        """A view of an object's memory.

        Args:
            value: A C-contiguous array, memoryview, bytearray, array.array, … ; bytes where it is only read.
            what: What the caller calls it, for errors.
            element_type: What the elements are, where the object's own type does not say: bfloat16 kept in uint16, say.
            writable: Whether it is to be written to.

        Raises:
            TypeError: It has no such memory, or elements that cannot be summed.
            ValueError: It is not contiguous, or read-only where it is to be written.
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
            raise TypeError(f"{what} has elements of {dtype.itemsize} bytes, {kind.label} has {kind.itemsize}")
        if dtype.byteorder == ">":
            raise TypeError(f"{what} is big endian; psum sums little endian elements")
        if not flags.c_contiguous:
            raise ValueError(f"{what} of shape {value.shape} is not C-contiguous; pass a contiguous copy")
        if writable and not flags.writeable:
            raise ValueError(f"{what} is read-only, and the result is to be written to it")
        shape = value.shape
        if dtype.char not in _LETTERS or not value.size:
            # It cannot be cast to bytes, as one of a type that the buffer protocol has no letter for.
            value = (value.reshape(-1).view(np.uint8) if value.size else np.empty(0, np.uint8)).data
        # What NamedTuple's own constructor does, without the interpreter.
        return tuple.__new__(cls, (value, shape, kind))
