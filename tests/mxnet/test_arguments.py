"""Bad arguments are errors of the call, and start nothing."""

from typing import Any

import numpy as np
import pytest

from psum.mxnet import BytePS
from psum.mxnet.compat import mx

ZEROS = mx.nd.zeros((2, 3))


@pytest.mark.parametrize("method", ["pushpull", "broadcast"])
@pytest.mark.parametrize(
    ("value", "out", "error", "text"),
    [
        ([1.0, 2.0], None, TypeError, r"value has a float; expected an NDArray or a list of NDArrays"),
        (np.zeros(3), None, TypeError, r"value has a ndarray; expected an NDArray"),
        (None, None, TypeError, r"value has a NoneType"),
        (ZEROS, 3, TypeError, r"out has a int"),
        (ZEROS, [ZEROS, None], TypeError, r"out has a NoneType"),
        ([], None, ValueError, r"value is an empty list"),
        (ZEROS, [], ValueError, r"out is an empty list"),
        (ZEROS, mx.nd.zeros((3, 2)), ValueError, r"value is float32 \(2, 3\), out is float32 \(3, 2\)"),
        (ZEROS, mx.nd.zeros((2, 3), dtype="float16"), ValueError, r"out is float16 \(2, 3\)"),
        ([ZEROS, mx.nd.zeros((2,))], None, ValueError, r"value\[0\] is float32 \(2, 3\), value\[1\] is float32 \(2,\)"),
        ([ZEROS, ZEROS.astype("int8")], None, ValueError, r"value\[1\] is int8"),
        (mx.nd.sparse.zeros("row_sparse", (2, 3)), None, TypeError, r"value has a row_sparse array"),
        (ZEROS, mx.nd.sparse.zeros("csr", (2, 3)), TypeError, r"out has a csr array"),
        (mx.nd.NDArray(mx.nd.ndarray._new_empty_handle()), None, ValueError, r"value has an array whose shape"),
    ],
)
def test_arrays(local_store: BytePS, method: str, value: Any, out: Any, error: type[Exception], text: str) -> None:
    """The error names an argument that is no array, is sparse, or differs from the others, and what was expected."""
    with pytest.raises(error, match=text):
        getattr(local_store, method)("k", value, out)


def test_element_type(local_store: BytePS) -> None:
    """The error names an unsupported element type, and the supported ones."""
    with pytest.raises(TypeError, match=r"value.*bool.*float16.*int64"):
        local_store.pushpull("k", mx.np.zeros((2,), dtype="bool"))


@pytest.mark.parametrize("key", [True, None, 1.5, b"k", ("k",), [1]])
def test_key(local_store: BytePS, key: Any) -> None:
    """A key is a str or an int."""
    with pytest.raises(TypeError, match="key"):
        local_store.pushpull(key, mx.nd.zeros((2,)))


def test_priority(local_store: BytePS) -> None:
    """A priority is an int."""
    with pytest.raises(TypeError):
        local_store.pushpull("k", mx.nd.zeros((2,)), priority=1.5)  # type: ignore[arg-type]


def test_changed_shape(local_store: BytePS) -> None:
    """A key keeps its shape and type. The error has both sides."""
    local_store.pushpull("k", mx.nd.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"float32 \(2, 3\).*float32 \(3, 2\)"):
        local_store.pushpull("k", mx.nd.zeros((3, 2)))


def test_broadcast_of_several(local_store: BytePS) -> None:
    """A broadcast has one value, which may be a list of one."""
    value, out = mx.nd.ones((2,)), mx.nd.zeros((2,))
    with pytest.raises(ValueError, match="2 arrays"):
        local_store.broadcast("k", [value, value], out)
    local_store.broadcast("k", [value], out)
    assert out.asnumpy().tolist() == [1, 1]


def test_bad_call_begins_nothing(local_store: BytePS) -> None:
    """A refused call does not affect the key."""
    with pytest.raises(TypeError):
        local_store.pushpull("k", [mx.nd.ones((2,)), "no"])
    array = mx.nd.ones((2,))
    local_store.pushpull("k", array)
    assert array.asnumpy().tolist() == [1, 1]
