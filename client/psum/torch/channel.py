"""The way from collectives to psum: names the keys, hands over the tensors, and returns the work."""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from psum.client import Client, ElementType, Loan, Operation, Store, Ticket, stragglers
from psum.torch import borrowers, in_callback, priority, staging
from psum.torch.callback_threads import CallbackThreads
from psum.torch.keys import KeySequence, Kind, Numbering
from psum.torch.tensors import byte_count, check_dense
from psum.torch.work import PsumWork

Counted = staging.Counted


class Transfer(NamedTuple):
    """One tensor that psum moves, in place.

    Attributes:
        name: What it is for. Ranks that disagree on it get an error.
        tensor: The tensor: dense, and of a dtype that psum sums.
        root: The rank whose bytes all ranks get. The tensor is then plain and of uint8. None: its sum is wanted.
        movable: As in staging.push_pull.
        borrows: Whether the sum may be lent rather than written to the tensor, which is then the work's only result.
        gradient, counted: As in staging.push_pull.
        stands_in: As in staging.broadcast.
    """

    name: str
    tensor: torch.Tensor
    root: int | None = None
    movable: bool = False
    borrows: bool = False
    gradient: bool = False
    counted: Counted | None = None
    stands_in: bool = False

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
        elastic: Whether ranks may be lost, and sums then count the others only.
        lends: Whether sums may be lent. Not in elastic jobs, where some must be scaled.
    """

    def __init__(self, client: Client, title: str, patience: float) -> None:
        self.client = client
        self.rank = client.rank
        self.size = client.num_workers
        self.elastic = client.elastic
        self.lends = client.settings.torch_lend_results and client.num_workers > 1 and not client.elastic
        self._store = client.store()
        self._begun = itertools.count()
        self._lock = threading.Lock()
        self._sequences: dict[int, KeySequence] = {}
        """By the level of callbacks."""
        self._callbacks = CallbackThreads(title)
        self._borrowed = borrowers.Borrowed()
        self._patience = patience

    def has_own_keys(self, transfer: Transfer) -> bool:
        """Whether a transfer has keys of its own. Otherwise its size must be rounded up: see KeySequence."""
        return self._keys.has_own_keys(transfer.kind)

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
            gradients=any(transfer.gradient for transfer in transfers),
        )
        for transfer in transfers:
            kind = transfer.kind
            key = self._keys.name(kind)
            store: Any = _OneKey(self._store, key, str(kind), operations)
            lent = self._lending(work, transfer.tensor) if transfer.borrows else None
            urgency = priority.of_ready(next(self._begun))
            if transfer.root is None:
                staging.push_pull(
                    store,
                    key,
                    transfer.tensor,
                    priority=urgency,
                    movable=transfer.movable,
                    done=work.done,
                    lent=lent,
                    gradient=transfer.gradient,
                    counted=transfer.counted,
                )
            else:
                staging.broadcast(
                    store,
                    key,
                    transfer.tensor,
                    root=transfer.root,
                    priority=urgency,
                    done=work.done,
                    stands_in=transfer.stands_in,
                )
        return work

    def numbering(self) -> tuple[int, dict[int, Numbering]]:
        """How operations are numbered: a number for their priorities, and by the level of callbacks that for keys."""
        with self._lock:
            return next(self._begun), {level: sequence.numbering() for level, sequence in self._sequences.items()}

    def renumber(self, numbering: tuple[int, Mapping[int, Numbering]]) -> None:
        """Numbers operations from now on as another process, of which `numbering` has told how."""
        begun, sequences = numbering
        with self._lock:
            self._begun = itertools.count(begun)
            self._sequences = {level: KeySequence(level, each) for level, each in sequences.items()}

    def _lending(self, work: PsumWork, tensor: torch.Tensor) -> Callable[[Loan], None]:
        """Gives up what was lent before for the same bucket. Returns what is called with the new loan."""
        self._borrowed.give_up(tensor)

        def lent(loan: Loan) -> None:
            self._borrowed.note(tensor, loan)
            work.lent(loan)

        return lent

    @property
    def _keys(self) -> KeySequence:
        """Names the operations that begin where the caller is."""
        level = in_callback.level()
        with self._lock:
            if (sequence := self._sequences.get(level)) is None:
                sequence = self._sequences[level] = KeySequence(level)
        return sequence

    def close(self) -> None:
        """Waits a few seconds for operations under way, and leaves the job. Operations that do not end by then fail."""
        self.client.close()
        self._callbacks.close()

    def abort(self) -> None:
        """Leaves the job at once. Operations under way fail."""
        self.client.close(timeout=0)
        self._callbacks.close()


class _OneKey:
    """A store for one operation, whose key says what it stands for. Ranks that disagree on that get an error.

    Args:
        store: The store.
        key: The key.
        label: What the key stands for.
        operations: Where the operation is noted, with its key's name and its round.
    """

    def __init__(self, store: Store, key: str, label: str, operations: list[tuple[str, int]]) -> None:
        self.client = store.client
        self._store = store
        self._key = key
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
        # Not the given key: it has a root in it. Ranks that disagree on the root must meet on one key.
        ticket = self._store.reserve(
            self._key, shape=shape, element_type=element_type, operation=operation, priority=priority, label=self._label
        )
        self._operations.append((ticket.key.name, ticket.round))
        return ticket
