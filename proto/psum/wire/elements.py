"""The table of element types that psum can sum.

Everything that depends on an element type follows from this table. A new type needs a line here and a value in the
protocol.
"""

import enum
from typing import Any, Final

import numpy as np

from psum.v1 import aggregator_pb2 as pb


class NumberKind(enum.IntEnum):
    """The kind of number. The values are the type codes of DLPack."""

    INTEGER = 0
    UNSIGNED = 1
    FLOAT = 2
    BFLOAT = 4


class ElementType(enum.IntEnum):
    """The type of a key's elements. The values are those of the protocol.

    Attributes:
        numpy: The little-endian NumPy type of the same storage.
        kind: The kind of number.
        digits: How many binary digits a whole number may have without being rounded, the sign left out.
        itemsize: Bytes per element.
    """

    # Protocol's value, NumPy type of the storage, kind of number, digits.
    FLOAT32 = pb.ELEMENT_TYPE_FLOAT32, "float32", NumberKind.FLOAT, 24
    FLOAT64 = pb.ELEMENT_TYPE_FLOAT64, "float64", NumberKind.FLOAT, 53
    FLOAT16 = pb.ELEMENT_TYPE_FLOAT16, "float16", NumberKind.FLOAT, 11
    BFLOAT16 = pb.ELEMENT_TYPE_BFLOAT16, "uint16", NumberKind.BFLOAT, 8  # NumPy has no bfloat16.
    UINT8 = pb.ELEMENT_TYPE_UINT8, "uint8", NumberKind.UNSIGNED, 8
    INT8 = pb.ELEMENT_TYPE_INT8, "int8", NumberKind.INTEGER, 7
    INT32 = pb.ELEMENT_TYPE_INT32, "int32", NumberKind.INTEGER, 31
    INT64 = pb.ELEMENT_TYPE_INT64, "int64", NumberKind.INTEGER, 63

    numpy: np.dtype[Any]
    kind: NumberKind
    digits: int
    itemsize: int
    _value_: int

    def __new__(cls, value: int, *columns: Any) -> "ElementType":
        """Make the member of one line of the table."""
        member = int.__new__(cls, value)
        member._value_ = value
        storage, member.kind, member.digits = columns
        member.numpy = np.dtype(storage).newbyteorder("<")
        member.itemsize = member.numpy.itemsize
        return member

    # Enum's own __hash__ is slow enough to matter for small tensors.
    __hash__ = int.__hash__

    @property
    def label(self) -> str:
        """The name in lower case, such as 'float32'. NumPy uses the same names."""
        return self.name.lower()

    @property
    def is_float(self) -> bool:
        """Whether the numbers are floating point."""
        return self.kind in (NumberKind.FLOAT, NumberKind.BFLOAT)

    @property
    def in_numpy(self) -> bool:
        """Whether NumPy has this type itself, and not only its storage."""
        return self.numpy.name == self.label

    @property
    def wire(self) -> pb.ElementType.ValueType:
        """The value for a protocol message."""
        return pb.ElementType.ValueType(self.value)

    @classmethod
    def of(cls, dtype: object) -> "ElementType":
        """Return the element type for a NumPy dtype, for its name, or for another library's bfloat16.

        Raises:
            TypeError: psum cannot sum this type.
        """
        if isinstance(dtype, cls):
            return dtype
        try:
            return _BY_DTYPE[dtype]
        except (KeyError, TypeError):
            pass
        name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None)
        try:
            return cls[str(name if name is not None else np.dtype(dtype).name).upper()]  # type: ignore[call-overload]
        except (KeyError, TypeError):
            supported = ", ".join(t.label for t in cls)
            raise TypeError(f"psum cannot sum elements of type {dtype!r}; it sums {supported}") from None


#: The common case. Finding the name of a NumPy dtype takes longer than all other work on a small tensor.
_BY_DTYPE: Final[dict[object, ElementType]] = {t.numpy: t for t in ElementType if t.in_numpy}
