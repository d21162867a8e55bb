"""Collectives that move values: broadcast, scatter, gather, all_gather, barrier."""

import functools
from collections.abc import Sequence

import torch
from psum.torch.channel import Channel
from psum.torch.collectives.plan import Plan, check_root
from psum.torch.tensors import as_bytes, byte_count, check_dense, is_plain, plain
from psum.torch.work import PsumWork


def broadcast(channel: Channel, tensors: Sequence[torch.Tensor], root: int, *, stands_in: bool = False) -> PsumWork:
    """Gives all ranks the root's tensors, of any dtype, bit for bit.

    From rank 0 of the group, psum moves a tensor once. From another rank, the others contribute zeros to a sum of
    bytes: that costs as much as an all_reduce. In an elastic job, it fails if that rank was lost before it had given
    all of its value.

    Args:
        channel: The group's.
        tensors: The tensors. They receive the root's values.
        root: The rank that sends its own.
        stands_in: Whether each rank's tensors have values that would do. If rank 0 is the root and lost, all get those
            of another rank.
    """
    plan = Plan(channel, "broadcast")
    for tensor in tensors:
        check_dense(tensor, "the tensor of broadcast")
        _broadcast(plan, tensor.detach(), root, stands_in=stands_in)
    return plan.begin(tensors)


def scatter(channel: Channel, output: torch.Tensor, parts: Sequence[torch.Tensor], root: int) -> PsumWork:
    """Gives each rank one of the root's tensors. Costs as much as a broadcast of all of them.

    Args:
        channel: The group's.
        output: Where this rank's tensor goes.
        parts: On the root one tensor for each rank, like output; elsewhere nothing.
        root: The rank that has the tensors.

    Raises:
        ValueError: The tensors are not as many as the ranks or not like output, or another rank than the root has some.
    """
    check_dense(output, "the output of scatter")
    check_root(channel, "scatter", root)
    whole = torch.zeros((channel.size, byte_count(output)), dtype=torch.uint8, device=output.device)
    if channel.rank == root:
        _check_list("scatter", "inputs", parts, output, channel.size)
        for part, place in zip(parts, whole, strict=True):
            place.copy_(as_bytes(plain(part)))
    elif parts:
        raise ValueError(f"scatter: rank {channel.rank} has tensors to scatter, but rank {root} is the root")
    target = output.detach()

    def copy() -> None:
        target.copy_(whole[channel.rank].view(target.dtype).view(target.shape))

    plan = Plan(channel, "scatter")
    plan.broadcast(whole.view(-1), root, copy, of=output.dtype)
    return plan.begin([output])


def gather(channel: Channel, outputs: Sequence[torch.Tensor], tensor: torch.Tensor, root: int) -> PsumWork:
    """Gives the root the tensors of all ranks. Costs as much as all_gather.

    In an elastic job, the root gets zeros for lost ranks. If the root is lost, nobody receives anything, and the others
    go on.

    Args:
        channel: The group's.
        outputs: On the root one tensor for each rank; elsewhere nothing.
        tensor: This rank's.
        root: The rank that gets them.

    Raises:
        ValueError: The outputs are not as many as the ranks or not like tensor, or another rank than the root has some.
    """
    check_dense(tensor, "the input of gather")
    check_root(channel, "gather", root)
    if channel.rank == root:
        _check_list("gather", "outputs", outputs, tensor, channel.size)
    elif outputs:
        raise ValueError(f"gather: rank {channel.rank} has outputs, but rank {root} is the root")
    plan = Plan(channel, "gather")
    plan.gather(tensor, lambda values: _copy_all(outputs, values))
    return plan.begin(outputs)


def all_gather(
    channel: Channel,
    outputs: Sequence[Sequence[torch.Tensor]],
    tensors: Sequence[torch.Tensor],
    *,
    own_for_lost: bool = False,
) -> PsumWork:
    """Gives all ranks the tensors of all ranks. psum has only sums, so each rank sends and receives the bytes of all.

    In an elastic job, ranks that were lost have zeros.

    Args:
        channel: The group's.
        outputs: For each tensor a list with one output for each rank.
        tensors: This rank's.
        own_for_lost: Whether lost ranks have this rank's value instead of zeros.
    """
    plan = Plan(channel, "all_gather")
    for copies, tensor in zip(outputs, tensors, strict=True):
        check_dense(tensor, "the input of all_gather")
        _check_list("all_gather", "outputs", copies, tensor, channel.size)
        plan.gather(tensor, functools.partial(_copy_all, copies, lost=tensor.detach() if own_for_lost else None))
    return plan.begin([output for copies in outputs for output in copies])


def all_gather_single(channel: Channel, outputs: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> PsumWork:
    """Like all_gather, with outputs that are the lists in one piece.

    Raises:
        ValueError: An output has not as many elements as all ranks' tensors, has another dtype, or is not contiguous.
    """
    lists = []
    for output, tensor in zip(outputs, tensors, strict=True):
        check_dense(output, "the output of all_gather_into_tensor")
        if output.numel() != tensor.numel() * channel.size or output.dtype is not tensor.dtype:
            raise ValueError(
                f"all_gather_into_tensor: the output has {output.numel()} elements of {output.dtype}; expected"
                f" {channel.size} × {tensor.numel()} of {tensor.dtype}"
            )
        if not output.is_contiguous():
            raise ValueError("all_gather_into_tensor: the output is not contiguous")
        lists.append(output.detach().view(channel.size, -1).unbind())
    return all_gather(channel, lists, tensors)


def barrier(channel: Channel) -> PsumWork:
    """Ends when all ranks have called it. In an elastic job, it does not wait for lost ranks."""
    plan = Plan(channel, "barrier")
    plan.sum(torch.zeros(1, dtype=torch.uint8))
    return plan.begin([])


def _broadcast(plan: Plan, target: torch.Tensor, root: int, *, stands_in: bool = False) -> None:
    if is_plain(target):
        plan.broadcast(as_bytes(target), root, of=target.dtype, stands_in=stands_in)
    else:
        values = plain(target)
        plan.broadcast(as_bytes(values), root, lambda: target.copy_(values), of=target.dtype, stands_in=stands_in)


def _check_list(name: str, what: str, tensors: Sequence[torch.Tensor], like: torch.Tensor, size: int) -> None:
    if len(tensors) != size:
        raise ValueError(f"{name}: {len(tensors)} {what} for {size} ranks; expected one for each")
    for tensor in tensors:
        check_dense(tensor, f"one of the {what} of {name}")
        if tensor.numel() != like.numel() or tensor.dtype is not like.dtype:
            raise ValueError(
                f"{name}: one of the {what} is {tensor.dtype} {tuple(tensor.shape)}, and this rank's tensor"
                f" {like.dtype} {tuple(like.shape)}; they must have the same dtype and number of elements"
            )


def _copy_all(
    outputs: Sequence[torch.Tensor], values: Sequence[torch.Tensor | None], lost: torch.Tensor | None = None
) -> None:
    # Without outputs on ranks that only contribute.
    for output, gathered in zip(outputs, values, strict=False):
        value = lost if gathered is None else gathered
        if value is None:
            output.detach().zero_()
        else:
            output.detach().copy_(value.view(output.shape))
