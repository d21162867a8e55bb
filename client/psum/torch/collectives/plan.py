"""A collective before it begins: what psum is to move, and what this rank does afterwards."""

import zlib
from collections.abc import Callable, Sequence
from typing import Final

import torch
from psum.client import DisagreementError
from psum.torch.channel import Channel, Counted, Transfer
from psum.torch.collectives.places import Places
from psum.torch.keys import rounded_up
from psum.torch.tensors import as_bytes, byte_count, described, plain
from psum.torch.work import PsumWork

#: Behind each rank's bytes: how many they are, and a checksum of what they are.
_TRAILER_BYTES = 16

_ADVICE: Final = "All ranks must call the same collectives in the same order, with tensors of one shape and dtype"

Step = Callable[[], object]


class Plan:
    """Collects transfers and steps. All ranks must plan alike.

    Args:
        channel: The group's.
        name: The collective, for people.
    """

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel = channel
        self._name = name
        self._transfers: list[Transfer] = []
        self._steps: list[Step] = []

    def sum(
        self,
        tensor: torch.Tensor,
        *steps: Step,
        detail: str = "",
        movable: bool = False,
        borrows: bool = False,
        gradient: bool = False,
        counted: Counted | None = None,
    ) -> None:
        """Adds up a tensor over all ranks, in place, or lends the work the sum; then come the steps.

        Args:
            tensor: A plain tensor.
            steps: What this rank does then.
            detail: What ranks must agree on beside the collective and the tensor.
            movable, borrows, gradient, counted: As in Transfer.
        """
        transfer = Transfer(
            f"{self._name}{detail}", tensor, movable=movable, borrows=borrows, gradient=gradient, counted=counted
        )
        if self._channel.has_own_keys(transfer):
            self._transfers.append(transfer)
        else:
            self._sum_rounded(transfer)
        self._steps += steps

    def broadcast(self, data: torch.Tensor, root: int, *steps: Step, of: torch.dtype, stands_in: bool = False) -> None:
        """Gives all ranks the root's bytes, in place; then come the steps.

        Args:
            data: A plain tensor of uint8.
            root: The rank whose bytes all get.
            steps: What this rank does then.
            of: The dtype that the bytes stand for.
            stands_in: As in Transfer.

        Raises:
            ValueError: The group has no such rank.
        """
        check_root(self._channel, self._name, root)
        name = f"{self._name} of {str(of).removeprefix('torch.')} from rank {root}"
        transfer = Transfer(name, data, root, stands_in=stands_in)
        # Bytes are often pickled objects, each of another size.
        is_odd = of is torch.uint8 and rounded_up(data.numel()) != data.numel()
        if not is_odd and self._channel.has_own_keys(transfer):
            self._transfers.append(transfer)
        else:
            self._broadcast_rounded(transfer)
        self._steps += steps

    def gather(
        self, tensor: torch.Tensor, use: Callable[[Sequence[torch.Tensor | None]], object], detail: str = ""
    ) -> None:
        """Gathers a tensor of the same size and dtype from each rank.

        It is a sum: each rank contributes its bytes at its place and zeros elsewhere. That costs, because every rank
        sends and receives the bytes of all ranks.

        Args:
            tensor: This rank's tensor, of any dtype.
            use: The next step: called with all ranks' tensors, flat, in order of rank. They are its own. None stands
                for the tensor of a rank that was lost before it had contributed all of it, in an elastic job.
            detail: What else ranks must agree on.
        """
        channel, name = self._channel, self._name
        value = plain(tensor)
        size = byte_count(value)
        room = rounded_up(size)
        places = Places(channel.size, room + _TRAILER_BYTES, value.device, elastic=channel.elastic)
        between = torch.zeros(room - size, dtype=torch.uint8, device=value.device)
        places.write(channel.rank, as_bytes(value), between, _trailer(size, f"{name}{detail} {value.dtype}"))

        def step() -> None:
            lost, every = places.lost(), places.read()
            _check(name, tensor, every[:, room:].contiguous().view(torch.int64).tolist(), channel.rank, lost)
            parts = every[:, :size].contiguous().view(-1).view(value.dtype)
            values: list[torch.Tensor | None] = list(parts.view(channel.size, value.numel()).unbind())
            for rank in lost:
                values[rank] = None
            use(values)

        self.sum(places.every, step, detail=detail, counted=places.count)

    def then(self, step: Step) -> None:
        """Adds a step after those that there are."""
        self._steps.append(step)

    def begin(self, result: Sequence[torch.Tensor]) -> PsumWork:
        """Begins the collective.

        Args:
            result: What the work's future gives.

        Raises:
            PsumError: A key or the whole job has failed before.
        """
        return self._channel.begin(self._name, self._transfers, self._steps, result)

    def _sum_rounded(self, transfer: Transfer) -> None:
        """Adds up a tensor with zeros behind it, and tells all ranks its size."""
        name, tensor = transfer.name, transfer.tensor
        channel, count = self._channel, tensor.numel()
        padded = torch.zeros(rounded_up(count), dtype=tensor.dtype, device=tensor.device)
        padded[:count].copy_(tensor.detach().reshape(-1))
        places = Places(channel.size, _TRAILER_BYTES, torch.device("cpu"), elastic=channel.elastic)
        places.write(channel.rank, _trailer(byte_count(tensor), f"{name} {tensor.dtype}"))

        def step() -> None:
            trailers = places.read().view(torch.int64).tolist()
            _check(name, tensor, trailers, channel.rank, places.lost())
            tensor.detach().copy_(padded[:count].view(tensor.shape))

        self._transfers += [
            Transfer(f"sizes of {name}", places.every, counted=places.count),
            transfer._replace(name=f"{name}, rounded up,", tensor=padded, movable=False, borrows=False),
        ]
        self._steps.append(step)

    def _broadcast_rounded(self, transfer: Transfer) -> None:
        """Broadcasts bytes with zeros and their number behind them."""
        name, data, root = transfer.name, transfer.tensor, transfer.root
        assert root is not None
        size, room, rank = data.numel(), rounded_up(data.numel()), self._channel.rank
        padded = torch.zeros(room + _TRAILER_BYTES, dtype=torch.uint8, device=data.device)
        padded[:size].copy_(data)
        padded[room:].copy_(_trailer(size, name))

        def step() -> None:
            theirs = int(padded[room:].clone().view(torch.int64)[0])
            if theirs != size:
                raise DisagreementError(
                    f"{name}: rank {root} gave {theirs} bytes, and rank {rank} expected {size}. {_ADVICE}",
                    ranks=[root],
                )
            data.copy_(padded[:size])

        self._transfers.append(Transfer(f"{name}, rounded up,", padded, root, stands_in=transfer.stands_in))
        self._steps.append(step)


def check_root(channel: Channel, name: str, root: int) -> None:
    """Checks that a collective's root is a rank of the group.

    Raises:
        ValueError: It is not.
    """
    if not 0 <= root < channel.size:
        raise ValueError(f"{name}: the root is rank {root}, and the group has the ranks 0 to {channel.size - 1}")


def _trailer(size: int, text: str) -> torch.Tensor:
    return torch.tensor([size, zlib.crc32(text.encode())]).view(torch.uint8)


def _check(name: str, tensor: torch.Tensor, trailers: Sequence[Sequence[int]], rank: int, lost: Sequence[int]) -> None:
    """Raises a DisagreementError if ranks that are not lost have given different things."""
    present = [(other, trailer) for other, trailer in enumerate(trailers) if other not in lost]
    others = [other for other, trailer in present if trailer != trailers[rank]]
    if not others:
        return
    sizes = ", ".join(f"rank {other}: {size} bytes" for other, (size, _) in present)
    raise DisagreementError(
        f"{name}: the ranks' tensors differ in size or type, or the ranks called different collectives. Rank {rank}"
        f" gave {described(tensor)}; {sizes}. {_ADVICE}",
        ranks=others,
    )
