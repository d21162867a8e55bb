"""The element types that can be summed."""

import enum
from typing import Any, Final

import numpy as np

from psum.v1 import aggregator_pb2 as pb


class ElementType(enum.IntEnum):
    """The type of a key's elements; the values are those of the protocol."""

    FLOAT32 = pb.ELEMENT_TYPE_FLOAT32
    FLOAT64 = pb.ELEMENT_TYPE_FLOAT64
    FLOAT16 = pb.ELEMENT_TYPE_FLOAT16
    BFLOAT16 = pb.ELEMENT_TYPE_BFLOAT16
    UINT8 = pb.ELEMENT_TYPE_UINT8
    INT8 = pb.ELEMENT_TYPE_INT8
    INT32 = pb.ELEMENT_TYPE_INT32
    INT64 = pb.ELEMENT_TYPE_INT64

    @property
    def label(self) -> str:
        """The name as NumPy writes it, such as 'float32'."""
        return self.name.lower()

    # The one that an Enum has of itself is as slow as the rest of what is done with a small tensor.
    __hash__ = int.__hash__

    numpy: np.dtype[Any]
    """The NumPy type of the same storage; bfloat16, which NumPy lacks, is kept in uint16."""

    itemsize: int
    """Bytes per element."""

    def __init__(self, _: int) -> None:
        self.numpy = np.dtype(np.uint16 if self.name == "BFLOAT16" else self.name.lower()).newbyteorder("<")
        self.itemsize = self.numpy.itemsize

    @property
    def wire(self) -> pb.ElementType.ValueType:
        """The value for a protocol message."""
        return pb.ElementType.ValueType(self.value)

    @classmethod
    def of(cls, dtype: object) -> "ElementType":
        """The element type of a NumPy dtype, of its name, or of another library's bfloat16.

        Raises:
            TypeError: It is none of those that can be summed.
        """
        if isinstance(dtype, cls):
            return dtype
        try:
            return _KNOWN[dtype]
        except (KeyError, TypeError):
            pass
        name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None)
        try:
            return cls[str(name if name is not None else np.dtype(dtype).name).upper()]  # type: ignore[call-overload]
        except (KeyError, TypeError):
            supported = ", ".join(t.label for t in cls)
            raise TypeError(f"psum cannot sum elements of type {dtype!r}; it sums {supported}") from None


#: What is asked for most: to find the name of a NumPy dtype takes longer than all else that is done with a tensor.
_KNOWN: Final[dict[object, ElementType]] = {t.numpy: t for t in ElementType if t is not ElementType.BFLOAT16}
