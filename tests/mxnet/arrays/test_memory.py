"""The memory of NDArrays."""

from typing import Any

import numpy as np
import pytest

from psum.mxnet.arrays.memory import (
    flat_bytes,
    layout_can_be_set_at_once,
    queue_plain_layout,
    set_plain_layout,
    usable_in_place,
)
from psum.mxnet.compat import MXNetError, mx

DTYPES = ["float16", "float32", "float64", "uint8", "int8", "int32", "int64"]


def convolution(*, out: Any = None) -> Any:
    """Makes a pending result that oneDNN leaves in a layout of its own."""
    data = mx.nd.arange(2 * 4 * 16 * 16).reshape((2, 4, 16, 16)) % 17
    weight = mx.nd.arange(8 * 4 * 3 * 3).reshape((8, 4, 3, 3)) % 5
    return mx.nd.Convolution(data, weight, no_bias=True, kernel=(3, 3), num_filter=8, out=out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_the_elements(dtype: str) -> None:
    """The bytes are those of the elements, and writes to them change the array."""
    array = mx.nd.array(np.arange(6).reshape(2, 3), dtype=dtype)
    array.wait_to_read()
    view = flat_bytes(array, array.asnumpy().nbytes)
    assert view.tobytes() == array.asnumpy().tobytes()
    view[:] = array.asnumpy()[::-1].tobytes()
    assert array.asnumpy().tolist() == [[3, 4, 5], [0, 1, 2]]


def test_bytes_of_bfloat16() -> None:
    """The elements of a bfloat16 array are the upper halves of float32."""
    array = mx.nd.array([1.0, -2.0]).astype(np.dtype([("bfloat16", np.uint16)]))
    array.wait_to_read()
    assert np.frombuffer(flat_bytes(array, 4), np.uint16).tolist() == [0x3F80, 0xC000]


def test_bytes_of_a_slice() -> None:
    """The bytes of a slice begin with the slice."""
    array = mx.nd.arange(12).reshape((4, 3))
    array.wait_to_read()
    assert np.frombuffer(flat_bytes(array[1:3], 24), np.float32).tolist() == [3, 4, 5, 6, 7, 8]


def test_bytes_of_an_empty_array() -> None:
    """An empty array has no bytes."""
    with mx.util.np_shape(True):
        assert len(flat_bytes(mx.nd.zeros((0, 3)), 0)) == 0


def test_memory_is_freed() -> None:
    """The bytes of an array do not keep its memory."""
    import gc

    seen = set()
    # The allocator may use some addresses before it uses one again.
    for _ in range(40):
        array = mx.nd.zeros((3, 1 << 20))
        array.wait_to_read()
        seen.add(np.frombuffer(flat_bytes(array, 12 << 20), np.uint8).ctypes.data)
        del array
        gc.collect()
        # The engine frees memory later, and the next array must not come before that.
        mx.nd.waitall()
    assert len(seen) < 40


def test_bytes_in_a_foreign_layout_are_refused() -> None:
    """The bytes of an array in a layout of oneDNN's are refused: they would not be the elements in order."""
    array = convolution()
    array.wait_to_read()
    with pytest.raises(MXNetError, match="data"):
        flat_bytes(array, 4)


@pytest.mark.parametrize("waited", [True, False])
@pytest.mark.parametrize("reused", [True, False])
def test_plain_layout_can_be_ordered(waited: bool, reused: bool) -> None:
    """A convolution's result gets the plain layout, whether it was computed or pending at the request."""
    expected = convolution().asnumpy()
    array = convolution(out=mx.nd.zeros(expected.shape)) if reused else convolution()
    if waited:
        array.wait_to_read()
    queue_plain_layout(array)
    array.wait_to_read()
    assert flat_bytes(array, expected.nbytes).tobytes() == expected.tobytes()
    assert array.asnumpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("reused", [True, False])
def test_plain_layout_can_be_set_at_once(reused: bool) -> None:
    """A convolution's result gets the plain layout in an operation on it, and so do the views of its memory."""
    expected = convolution().asnumpy()
    array = convolution(out=mx.nd.zeros(expected.shape)) if reused else convolution()
    view = array.reshape((-1,))
    array.wait_to_read()
    assert layout_can_be_set_at_once()
    set_plain_layout(array)
    assert flat_bytes(array, expected.nbytes).tobytes() == expected.tobytes()
    assert view.asnumpy().tobytes() == array.asnumpy().tobytes() == expected.tobytes()


def test_plain_arrays_stay_where_they_are() -> None:
    """A request for the plain layout changes neither value nor address of an array that has it."""
    array = mx.nd.arange(5)
    array.wait_to_read()
    before = np.frombuffer(flat_bytes(array, 20), np.uint8).ctypes.data
    queue_plain_layout(array)
    array.wait_to_read()
    assert np.frombuffer(flat_bytes(array, 20), np.uint8).ctypes.data == before
    assert array.asnumpy().tolist() == [0, 1, 2, 3, 4]


def test_host_memory_is_usable_in_place() -> None:
    """Arrays of the CPU and pinned ones are used in place, those of a GPU are not."""
    assert usable_in_place(mx.cpu())
    assert usable_in_place(mx.cpu(1))
    assert usable_in_place(mx.cpu_pinned())
    assert not usable_in_place(mx.gpu())
