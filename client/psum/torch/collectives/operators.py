"""What a ReduceOp does to the values of all ranks."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch.distributed import ReduceOp


class Operator(NamedTuple):
    """One reduction.

    Attributes:
        name: Its name.
        combine: Computes the result of two values, in place, for reductions of gathered values. None: psum sums.
        averages: Whether the sum is divided by the number of ranks.
        bitwise: Whether it takes bits, which only whole numbers and bools have.
    """

    name: str
    combine: Callable[[torch.Tensor, torch.Tensor], Any] | None = None
    averages: bool = False
    bitwise: bool = False

    @property
    def detail(self) -> str:
        """What a collective with this reduction is called after its name. Ranks must agree on it."""
        return "" if self.combine is None and not self.averages else f" with {self.name}"

    def check(self, dtype: torch.dtype) -> None:
        """Checks that values of this dtype can be reduced.

        Raises:
            TypeError: They cannot.
        """
        if self.bitwise and (dtype.is_floating_point or dtype.is_complex):
            raise TypeError(f"{self.name} takes whole numbers and bools, and this tensor is of {dtype}")

    def of_all(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """The result for the values of ranks, in order of rank. Changes the first."""
        assert self.combine is not None
        first, *others = values
        for other in others:
            self.combine(first, other)
        return first


def _minimum(value: torch.Tensor, other: torch.Tensor) -> None:
    torch.minimum(value, other, out=value)


def _maximum(value: torch.Tensor, other: torch.Tensor) -> None:
    torch.maximum(value, other, out=value)


_OPERATORS: Final = (
    (ReduceOp.SUM, Operator("SUM")),
    (ReduceOp.AVG, Operator("AVG", averages=True)),
    (ReduceOp.MIN, Operator("MIN", _minimum)),
    (ReduceOp.MAX, Operator("MAX", _maximum)),
    (ReduceOp.PRODUCT, Operator("PRODUCT", lambda value, other: value.mul_(other))),
    (ReduceOp.BAND, Operator("BAND", lambda value, other: value.bitwise_and_(other), bitwise=True)),
    (ReduceOp.BOR, Operator("BOR", lambda value, other: value.bitwise_or_(other), bitwise=True)),
    (ReduceOp.BXOR, Operator("BXOR", lambda value, other: value.bitwise_xor_(other), bitwise=True)),
)


def operator_of(op: Any) -> Operator:
    """Returns what a ReduceOp does.

    Raises:
        NotImplementedError: psum does not have it.
    """
    for known, operator in _OPERATORS:
        if op == known:
            return operator
    names = ", ".join(operator.name for _, operator in _OPERATORS)
    raise NotImplementedError(f"psum does not have the reduction {op}; it has {names}. The backend nccl has PREMUL_SUM")
