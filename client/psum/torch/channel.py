"""The way from collectives to psum: names the keys, hands over the tensors, and returns the work."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from psum.client import Client, ElementType, Operation, Store, Ticket, stragglers
from psum.torch import priority, staging
from psum.torch.callback_threads import CallbackThreads
from psum.torch.in_callback import in_callback
from psum.torch.keys import KeySequence, Kind
from psum.torch.tensors import byte_count, check_dense
from psum.torch.work import PsumWork


class Transfer(NamedTuple):
    """One tensor that psum moves, in place.

    Attributes:
        name: What it is for. Ranks that disagree on it get an error.
        tensor: The tensor: dense, and of a dtype that psum sums.
        root: The rank whose bytes all ranks get. The tensor is then plain and of uint8. None: its sum is wanted.
        movable: As in staging.push_pull.
    """

    name: str
    tensor: torch.Tensor
    root: int | None = None
    movable: bool = False

    @property
    def kind(self) -> Kind:
        """What ranks must agree on."""
        tensor = self.tensor
        return Kind(self.name, str(tensor.dtype).removeprefix("torch."), tensor.numel(), byte_count(tensor))


class Channel:
    """One group's store, with what turns its operations into works. From any thread.

    Args:
        client: The membership in the group's job. The channel closes it.
        title: The group, for people.
        patience: Seconds that a collective waits at most.

    Attributes:
        client: As given.
        rank: This process's rank in the group.
        size: The number of ranks.
    """

    def __init__(self, client: Client, title: str, patience: float) -> None:
        self.client = client
        self.rank = client.rank
        self.size = client.num_workers
        self._store = client.store()
        self._begun = itertools.count()
        self._keys = KeySequence()
        self._callbacks = CallbackThreads(title)
        self._patience = patience

    def has_own_keys(self, transfer: Transfer) -> bool:
        """Whether a transfer has keys of its own. Otherwise its size must be rounded up: see KeySequence."""
        return self._keys.has_own_keys(transfer.kind, in_callback=in_callback())

    def begin(
        self,
        name: str,
        transfers: Sequence[Transfer],
        steps: Sequence[Callable[[], object]],
        result: Sequence[torch.Tensor],
    ) -> PsumWork:
        """Begins a collective.

        Args:
            name: The collective, for people.
            transfers: What psum moves.
            steps: What this rank does after all transfers, in order.
            result: What the work's future gives.

        Raises:
            PsumError: A key or the whole job has failed before.
        """
        for transfer in transfers:
            check_dense(transfer.tensor, f"a tensor of {name}")
        operations: list[tuple[str, int]] = []
        work = PsumWork(
            name,
            result,
            transfers=len(transfers),
            steps=steps,
            callbacks=self._callbacks,
            patience=self._patience,
            whom=lambda: stragglers.whom(self.client, operations),
        )
        for transfer in transfers:
            kind = transfer.kind
            store: Any = _LabelledStore(self._store, str(kind), operations)
            key = self._keys.name(kind, in_callback=in_callback())
            urgency = priority.of_ready(next(self._begun))
            if transfer.root is None:
                staging.push_pull(
                    store, key, transfer.tensor, priority=urgency, movable=transfer.movable, done=work.done
                )
            else:
                staging.broadcast(store, key, transfer.tensor, root=transfer.root, priority=urgency, done=work.done)
        return work

    def close(self) -> None:
        """Waits a few seconds for operations under way, and leaves the job. Operations that do not end by then fail."""
        self.client.close()
        self._callbacks.close()

    def abort(self) -> None:
        """Leaves the job at once. Operations under way fail."""
        self.client.close(timeout=0)
        self._callbacks.close()


class _LabelledStore:
    """A store whose keys say what they stand for. Ranks that disagree on that get an error.

    Args:
        store: The store.
        label: What its keys stand for.
        operations: Where its operations are noted, each with its key's name and its round.
    """

    def __init__(self, store: Store, label: str, operations: list[tuple[str, int]]) -> None:
        self.client = store.client
        self._store = store
        self._label = label
        self._operations = operations

    def reserve(
        self,
        key: str,
        *,
        shape: tuple[int, ...],
        element_type: ElementType,
        operation: Operation = Operation.SUM,
        priority: int = 0,
    ) -> Ticket:
        ticket = self._store.reserve(
            key, shape=shape, element_type=element_type, operation=operation, priority=priority, label=self._label
        )
        self._operations.append((ticket.key.name, ticket.round))
        return ticket
