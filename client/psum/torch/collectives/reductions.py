"""Collectives that combine values: all_reduce, reduce, reduce_scatter."""

from collections.abc import Sequence
from typing import Any

import torch
from psum.client import Contribution
from psum.torch.channel import Channel
from psum.torch.collectives.operators import Operator, operator_of
from psum.torch.collectives.plan import Plan, check_root
from psum.torch.tensors import check_dense, element_type_of, is_plain, plain
from psum.torch.work import PsumWork

#: The most ranks whose bools can be added up in bytes.
_MOST_BOOLS = 255


def all_reduce(
    channel: Channel,
    tensors: Sequence[torch.Tensor],
    op: Any,
    *,
    movable: bool = False,
    borrows: bool = False,
    gradients: bool = False,
) -> PsumWork:
    """Combines tensors over all ranks, in place.

    SUM is psum's own operation. AVG divides the sum afterwards, on each rank. All others gather the values of all ranks
    (see Plan.gather): each rank then sends and receives as many times the bytes as there are ranks.

    In an elastic job, the values of lost ranks are left out. AVG divides by the number of ranks that contributed.

    Args:
        channel: The group's.
        tensors: The tensors.
        op: The reduction.
        movable: As in Transfer.
        borrows: Whether a sum of a plain tensor may be lent: see PsumWork.
        gradients: Whether SUM sums gradients, which the caller divides by the number of ranks: see staging.push_pull.
    """
    operator = operator_of(op)
    plan = Plan(channel, "all_reduce")
    for tensor in tensors:
        check_dense(tensor, "the tensor of all_reduce")
        _combine(plan, channel.size, tensor, operator, movable=movable, borrows=borrows, gradient=gradients)
    return plan.begin(tensors)


def reduce(channel: Channel, tensor: torch.Tensor, op: Any, root: int) -> PsumWork:
    """Combines a tensor over all ranks. Only the root's tensor changes. Costs as much as all_reduce.

    In an elastic job in which the root is lost, nobody receives the result, and the others go on.
    """
    check_dense(tensor, "the tensor of reduce")
    check_root(channel, "reduce", root)
    plan = Plan(channel, "reduce")
    target = tensor if channel.rank == root else tensor.detach().clone()
    _combine(plan, channel.size, target, operator_of(op))
    return plan.begin([tensor])


def reduce_scatter(
    channel: Channel, outputs: Sequence[torch.Tensor], inputs: Sequence[Sequence[torch.Tensor]], op: Any
) -> PsumWork:
    """Combines lists of tensors, one tensor for each rank, and gives each rank the result of its own.

    Costs as much as an all_reduce of the whole lists, because psum sends every rank all results.

    Args:
        channel: The group's.
        outputs: Where the results go.
        inputs: For each output a list of tensors. The tensors of a list may differ in size, alike on all ranks.
        op: The reduction.

    Raises:
        ValueError: A list has not as many tensors as there are ranks, or this rank's is not like its output.
    """
    operator = operator_of(op)
    plan = Plan(channel, "reduce_scatter")
    for output, parts in zip(outputs, inputs, strict=True):
        check_dense(output, "the output of reduce_scatter")
        if len(parts) != channel.size:
            raise ValueError(f"reduce_scatter: {len(parts)} tensors for {channel.size} ranks; expected one for each")
        for part in parts:
            check_dense(part, "an input of reduce_scatter")
        if (mine := parts[channel.rank]).numel() != output.numel() or mine.dtype is not output.dtype:
            raise ValueError(
                f"reduce_scatter: the output is {output.dtype} {tuple(output.shape)}, and this rank's input"
                f" {mine.dtype} {tuple(mine.shape)}; they must have the same dtype and number of elements"
            )
        whole = torch.cat([part.detach().reshape(-1) for part in parts])
        begin = sum(part.numel() for part in parts[: channel.rank])
        _combine(plan, channel.size, whole, operator)
        plan.then(_copying(output, whole[begin : begin + output.numel()]))
    return plan.begin(outputs)


def reduce_scatter_single(
    channel: Channel, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], op: Any
) -> PsumWork:
    """Like reduce_scatter, with inputs that are the lists in one piece.

    Raises:
        ValueError: An input has not as many elements as the outputs of all ranks.
    """
    lists = []
    for output, whole in zip(outputs, inputs, strict=True):
        check_dense(whole, "the input of reduce_scatter_tensor")
        if whole.numel() != output.numel() * channel.size:
            raise ValueError(
                f"reduce_scatter_tensor: the input has {whole.numel()} elements; expected {channel.size} ×"
                f" {output.numel()}, the output's for each rank"
            )
        lists.append(whole.detach().reshape(channel.size, -1).unbind())
    return reduce_scatter(channel, outputs, lists, op)


def _combine(
    plan: Plan,
    size: int,
    tensor: torch.Tensor,
    operator: Operator,
    *,
    movable: bool = False,
    borrows: bool = False,
    gradient: bool = False,
) -> None:
    """Plans the reduction of a tensor, in place."""
    target = tensor.detach()
    operator.check(tensor.dtype)
    if operator.combine is not None:

        def combine(gathered: Sequence[torch.Tensor | None]) -> None:
            present = [each for each in gathered if each is not None]
            target.copy_(operator.of_all(present).view(target.shape))

        plan.gather(target, combine, operator.detail)
        return
    element_type_of(tensor.dtype)
    values, detail = target, operator.detail
    if tensor.dtype is torch.bool:
        detail = f"{detail} of bool"
        # A sum of bools says whether any is true.
        values = target.to(torch.uint8 if size <= _MOST_BOOLS else torch.int32).contiguous()
    elif not is_plain(target):
        values = plain(target)
    is_own = values is target
    # A step changes the result, so it cannot be in memory that is lent.
    counts: list[Contribution] = []
    plan.sum(
        values,
        detail=detail,
        movable=movable and is_own,
        borrows=borrows and is_own and not operator.averages,
        gradient=gradient,
        counted=counts.extend if operator.averages else None,
    )
    if operator.averages:
        plan.then(lambda: _divide(values, size, counts))
    if values is not target:
        plan.then(_copying(target, values))


def _divide(sums: torch.Tensor, size: int, counts: Sequence[Contribution]) -> None:
    """Divides sums by the number of ranks that contributed to each.

    Args:
        sums: A plain tensor.
        size: The number of ranks.
        counts: Where fewer contributed.
    """
    rounding = None if sums.dtype.is_floating_point else "trunc"
    flat, position = sums.view(-1), 0
    for part in counts:
        flat[position : part.start].div_(size, rounding_mode=rounding)
        flat[part.start : part.stop].div_(part.count, rounding_mode=rounding)
        position = part.stop
    flat[position:].div_(size, rounding_mode=rounding)


def _copying(target: torch.Tensor, values: torch.Tensor) -> Any:
    return lambda: target.detach().copy_(values.view(target.shape))
