"""Makes torch.distributed.all_gather_object and gather_object give None for ranks that an elastic job has lost."""

import functools
from collections.abc import Callable
from typing import Any

import torch.distributed as dist


def install() -> None:
    """Wraps the function that makes objects of gathered bytes. A second call changes nothing.

    The number of bytes is gathered too, and a lost rank's is 0. An object always takes more.
    """
    module = dist.distributed_c10d
    if not hasattr(module._tensor_to_object, "__wrapped__"):
        module._tensor_to_object = _with_none(module._tensor_to_object)


def _with_none(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def make_or_none(tensor: Any, tensor_size: Any, *arguments: Any, **named: Any) -> Any:
        return make(tensor, tensor_size, *arguments, **named) if int(tensor_size) else None

    return make_or_none
