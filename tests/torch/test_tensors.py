"""Tensors as psum sees them."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from psum.client import ElementType  # noqa: E402
from psum.torch import tensors  # noqa: E402


@pytest.mark.parametrize("dtype", list(tensors.ELEMENT_TYPES), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 3)], ids=str)
def test_the_array_is_the_memory_of_the_tensor(dtype: Any, shape: tuple[int, ...]) -> None:
    """What is written into the array is in the tensor, for every dtype and shape."""
    tensor = torch.zeros(shape, dtype=dtype)
    array, element_type = tensors.flat_array(tensor)
    assert array.size == tensor.numel()
    assert array.dtype.itemsize == element_type.itemsize == tensor.element_size()
    array.view(np.uint8)[:] = 1
    assert (tensors.as_bytes(tensor) == 1).all()


def test_bfloat16_is_kept_in_uint16() -> None:
    """The bits of a bfloat16 reach psum, which the element type names."""
    array, element_type = tensors.flat_array(torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
    assert element_type is ElementType.BFLOAT16
    assert array.tolist() == [0x3F80, 0xC000]


def test_a_tensor_that_is_not_contiguous_is_copied() -> None:
    """A transposed, a sliced and a negated view each give a copy of their values. A contiguous tensor gives itself."""
    tensor = torch.arange(6.0).reshape(2, 3)
    assert tensors.plain(tensor).data_ptr() == tensor.data_ptr()
    negated = torch.view_as_complex(torch.tensor([[1.0, 2.0]])).conj().imag
    for view in (tensor.t(), tensor[:, 1:], tensor[:, 0], negated):
        copy = tensors.plain(view)
        assert tensors.is_plain(copy)
        assert copy.equal(view.clone())
        assert copy.data_ptr() != view.data_ptr()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int16, torch.float8_e4m3fn], ids=str)
def test_a_dtype_that_psum_cannot_sum_is_named(dtype: Any) -> None:
    """The error names the dtype and those that psum sums."""
    with pytest.raises(TypeError, match=rf"cannot sum elements of type {dtype}; it sums float16, bfloat16, float32"):
        tensors.flat_array(torch.zeros(1, dtype=dtype))


def test_a_sparse_tensor_is_named() -> None:
    """The error names the layout, and says how to make gradients dense."""
    sparse = torch.zeros(2, 2).to_sparse()
    with pytest.raises(TypeError, match=r"the gradient is a sparse tensor \(torch\.sparse_coo.*sparse=False"):
        tensors.check_dense(sparse, "the gradient")
    with pytest.raises(TypeError, match=r"the gradient is a list; expected a torch\.Tensor"):
        tensors.check_dense([sparse], "the gradient")
