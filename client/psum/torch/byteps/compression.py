"""Sending gradients with fewer bits."""

from typing import Any, Final, Protocol

import torch


class Compressor(Protocol):
    """Makes tensors smaller before psum sums them, and restores the sums. Write your own with these two methods."""

    def compress(self, tensor: Any) -> tuple[Any, Any]:
        """Returns the tensor to send, of the same size on all ranks, and what `decompress` needs to know."""

    def decompress(self, tensor: Any, context: Any) -> Any:
        """Restores a sum to the type that the tensor had before."""


class NoneCompressor:
    """Sends tensors as they are."""

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, None]:
        """Returns the tensor itself."""
        return tensor, None

    @staticmethod
    def decompress(tensor: Any, context: None) -> Any:
        """Returns the tensor itself."""
        return tensor


class FP16Compressor:
    """Sends float32 and float64 as float16. psum adds float16 up in float32, and rounds once."""

    #: Other types are sent as they are. bfloat16 has as many bits, and a range that float16 lacks.
    _WIDE: Final = (torch.float32, torch.float64)

    @classmethod
    def compress(cls, tensor: Any) -> tuple[Any, torch.dtype]:
        """Returns the tensor in float16, and the type that it had."""
        return (tensor.to(torch.float16) if tensor.dtype in cls._WIDE else tensor), tensor.dtype

    @staticmethod
    def decompress(tensor: Any, context: torch.dtype) -> Any:
        """Returns the tensor in the type that it had."""
        return tensor.to(context)


class Compression:
    """The compressors to choose from."""

    none = NoneCompressor
    fp16 = FP16Compressor
