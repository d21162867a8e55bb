"""Everything with the buffer protocol can be push-pulled; other values are refused with a clear error."""

import array
from typing import Any

import numpy as np
import pytest

from psum.client import ElementType
from psum.client.core.buffers import Buffer, flat


@pytest.mark.parametrize(
    ("value", "shape", "element_type"),
    [
        (np.zeros((2, 3), np.float32), (2, 3), ElementType.FLOAT32),
        (np.zeros((), np.float64), (), ElementType.FLOAT64),
        (np.zeros((0, 4), np.int8), (0, 4), ElementType.INT8),
        (array.array("d", [1.0, 2.0]), (2,), ElementType.FLOAT64),
        (bytearray(b"abc"), (3,), ElementType.UINT8),
        (memoryview(bytearray(8)).cast("i"), (2,), ElementType.INT32),
    ],
)
def test_shape_and_type_come_from_the_buffer(value: Any, shape: tuple[int, ...], element_type: ElementType) -> None:
    """NumPy arrays, arrays of the standard library and bytes are accepted, also with no or one element."""
    buffer = Buffer.of(value, "value", writable=True)
    assert (buffer.shape, buffer.element_type) == (shape, element_type)
    assert len(flat(buffer.memory)) == np.prod(shape) * element_type.itemsize


def test_a_buffer_is_the_memory_itself() -> None:
    """Writing to the view changes the array."""
    value = np.zeros(2, np.float32)
    flat(Buffer.of(value, "value", writable=True).memory)[:] = np.array([1, 2], np.float32).tobytes()
    assert value.tolist() == [1, 2]


def test_bfloat16_in_other_storage_is_named_by_the_caller() -> None:
    """The caller names a type that the buffer cannot tell, and the sizes must match."""
    assert Buffer.of(np.zeros(4, np.uint16), "value", "bfloat16").element_type is ElementType.BFLOAT16
    with pytest.raises(TypeError, match="elements of 4 bytes, bfloat16 has 2"):
        Buffer.of(np.zeros(4, np.float32), "value", "bfloat16")


@pytest.mark.parametrize(
    ("value", "error", "complaint"),
    [
        ([1.0, 2.0], TypeError, "value is a list, which has no usable buffer"),
        (np.zeros(3, np.complex64), TypeError, "cannot sum elements of type"),
        (np.zeros(3, ">f4"), TypeError, "big endian"),
        (np.zeros((4, 4), np.float32)[:, ::2], ValueError, "not C-contiguous"),
        (b"read only", ValueError, "read-only"),
    ],
)
def test_what_cannot_be_used_is_refused(value: Any, error: type[Exception], complaint: str) -> None:
    """The error names the argument, and says what is wrong with it."""
    with pytest.raises(error, match=complaint):
        Buffer.of(value, "value", writable=True)
