"""Torch tensors as psum sees them: flat memory with an element type. Also says which tensors psum cannot take."""

import functools
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import torch
from psum.client import ElementType

#: The element type of each dtype that psum sums. A bool is kept in a byte.
ELEMENT_TYPES: Final = {
    torch.float16: ElementType.FLOAT16,
    torch.bfloat16: ElementType.BFLOAT16,
    torch.float32: ElementType.FLOAT32,
    torch.float64: ElementType.FLOAT64,
    torch.uint8: ElementType.UINT8,
    torch.int8: ElementType.INT8,
    torch.int32: ElementType.INT32,
    torch.int64: ElementType.INT64,
    torch.bool: ElementType.UINT8,
}

#: What a tensor is viewed as whose dtype NumPy lacks, or whose elements psum sums as another type of the same size.
_VIEWED_AS: Final = {torch.bfloat16: torch.uint16, torch.bool: torch.uint8}


def element_type_of(dtype: torch.dtype) -> ElementType:
    """Returns the type of the elements of tensors with this dtype.

    Raises:
        TypeError: psum cannot sum them.
    """
    try:
        return ELEMENT_TYPES[dtype]
    except KeyError:
        known = ", ".join(str(known).removeprefix("torch.") for known in ELEMENT_TYPES)
        raise TypeError(
            f"psum cannot sum elements of type {dtype}; it sums {known}. Convert the tensor first, for example with"
            " .float(), or view complex numbers as pairs with torch.view_as_real"
        ) from None


def check_dense(tensor: torch.Tensor, what: str) -> None:
    """Checks that a tensor has memory with all of its values.

    Args:
        tensor: The tensor.
        what: What it is, in the error.

    Raises:
        TypeError: It is no tensor, or a sparse or quantized one.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{what} is a {type(tensor).__name__}; expected a torch.Tensor")
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{what} is a sparse tensor ({tensor.layout}, {tensor.dtype}, shape {tuple(tensor.shape)}); psum sums dense"
            " tensors only. Make gradients dense (torch.nn.Embedding(…, sparse=False)), or pass tensor.to_dense()"
        )
    if tensor.is_quantized:
        raise TypeError(f"{what} is a quantized tensor ({tensor.dtype}); pass plain numbers: tensor.dequantize()")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the memory of a dense tensor holds exactly its values, in order."""
    return tensor.is_contiguous() and not tensor.is_neg() and not tensor.is_conj()


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor itself if its memory can be used as it is, else a copy whose memory can."""
    if is_plain(tensor):
        return tensor.detach()
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def flat_array(tensor: torch.Tensor) -> tuple[npt.NDArray[Any], ElementType]:
    """Returns the memory of a plain tensor on the CPU as a flat array, and the type of its elements.

    The array keeps the memory alive. bfloat16 appears as uint16, and bool as uint8. A tensor without dimensions gives
    one element, and an empty tensor none.

    Raises:
        TypeError: psum cannot sum elements of this type.
    """
    element_type = element_type_of(tensor.dtype)
    flat = tensor.detach().view(-1)
    viewed = _VIEWED_AS.get(tensor.dtype)
    array: npt.NDArray[Any] = (flat if viewed is None else flat.view(viewed)).numpy()
    return array, element_type


def unmarked_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Like the array of `flat_array`, but the tensor's storage does not remember that it was made.

    PyTorch forbids to resize a storage that NumPy arrays were made of. So a storage that may be resized has none that
    the program still uses.
    """
    memory = _Memory(tensor)
    array: npt.NDArray[Any] = np.asarray(memory)
    return array


class _Memory:
    """The memory of a plain tensor on the CPU, which it keeps alive. NumPy reads the attribute."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        kind = torch.empty(0, dtype=_VIEWED_AS.get(tensor.dtype, tensor.dtype)).numpy().dtype
        self.__array_interface__ = {
            "version": 3,
            "shape": (tensor.numel(),),
            "typestr": kind.str,
            "data": (tensor.data_ptr(), False),
        }


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the memory of a plain tensor of any dtype as a flat tensor of uint8. Works on every device."""
    return tensor.detach().view(-1).view(torch.uint8)


@functools.cache
def dtype_name(dtype: torch.dtype) -> str:
    """A dtype's name without its module, for people."""
    return str(dtype).removeprefix("torch.")


def described(tensor: torch.Tensor) -> str:
    """A tensor's type, shape and device, for people."""
    return f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)} on {tensor.device}"


def byte_count(tensor: torch.Tensor) -> int:
    """The bytes that a tensor's values take."""
    return int(tensor.numel() * tensor.element_size())
