"""The keys of one worker, and the reservation of their rounds."""

import threading
from collections.abc import Callable, Container, Mapping

from psum.client.core.counters import Counters
from psum.client.core.key import Key
from psum.client.core.operation import Operation
from psum.client.core.placement import Placement
from psum.client.core.recorder import Recorder
from psum.client.core.store_numbers import STEERING
from psum.client.core.ticket import Ticket
from psum.wire import ElementType
from psum.wire.errors import PsumError


class KeyRegistry:
    """Finds keys, reserves their rounds, and remembers which of them failed. From any thread.

    Args:
        placement: Where shards go. None without aggregators, or before `place`.
        counters: Where operations are counted.
        hand_over: Called from any thread with a ticket that was started or aborted.
    """

    def __init__(self, placement: Placement | None, counters: Counters, hand_over: Callable[[Ticket], None]) -> None:
        self.failure: PsumError | None = None
        """Why every operation fails from now on."""
        self._placement = placement
        self._steering: Placement | None = None
        """Where the keys of the store STEERING go."""
        self._starts: Mapping[int, int] = {}
        """The first round of each key by its id, in a process that has joined an elastic job."""
        self._counters = counters
        self._hand_over = hand_over
        self._keys: dict[tuple[int, str, Operation] | tuple[int, str, Operation, tuple[int, ...]], Key] = {}
        """All keys; those that are not for all ranks with their ranks."""
        self._by_id: dict[int, Key] = {}
        # Reentrant: a signal handler may push while the main thread holds the lock.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._keys)

    def by_id(self, key_id: int) -> Key | None:
        """The key with this id on the wire, None if no round of it was reserved."""
        return self._by_id.get(key_id)

    def reserve(
        self,
        store: int,
        name: str,
        shape: tuple[int, ...],
        element_type: ElementType,
        operation: Operation,
        priority: int,
        label: str,
        recorder: Recorder | None,
        clock: Callable[[], float],
        ranks: tuple[int, ...] = (),
    ) -> Ticket:
        """See Session.reserve.

        Args:
            store: The number of the store.
            name: The key's name in it.
            shape: The tensor's shape.
            element_type: The type of its elements.
            operation: What is done with it.
            priority: Higher values are sent first.
            label: What the key stands for, empty if nobody says.
            recorder: Where the operation is recorded, None if nowhere.
            clock: The time now.
            ranks: The ranks that use the key, the root of a broadcast first; none if all do.
        """
        with self._lock:
            which = (store, name, operation, ranks) if ranks else (store, name, operation)
            key = self._keys.get(which)
            if key is None:
                counters = self._counters.operations[operation]
                placement = self._placement if store != STEERING else self._steering
                key = Key(store, name, shape, element_type, operation, placement, counters, label, ranks)
                key.start_at(self._starts.get(key.id, 0))
                first = self._keys.get((store, name, Operation.BROADCAST))
                if label and first is not None and first.label == label:
                    key.begins_with = first
                    first.successor = key
                self._keys[which] = self._by_id[key.id] = key
            self._raise_failure(key)
            key.check(shape, element_type, label)
            return self._next(key, priority, recorder, clock)

    def reserve_again(
        self, key: Key, priority: int, recorder: Recorder | None, clock: Callable[[], float], label: str
    ) -> Ticket:
        """See Session.reserve_again."""
        with self._lock:
            if self.failure is not None or key.failure is not None or key.begins_with is not None:
                self._raise_failure(key)
            if label:
                key.check(key.shape, key.element_type, label)
            # What `_next` does, without a call.
            ticket = Ticket(key, key.reserved, priority, self._hand_over)
            key.reserved += 1
        if recorder is not None:
            ticket.record = recorder.reserved(key, ticket.round, clock())
        return ticket

    def _next(self, key: Key, priority: int, recorder: Recorder | None, clock: Callable[[], float]) -> Ticket:
        ticket = Ticket(key, key.reserved, priority, self._hand_over)
        key.reserved += 1
        if recorder is not None:
            ticket.record = recorder.reserved(key, ticket.round, clock())
        return ticket

    def _raise_failure(self, key: Key) -> None:
        begun = None if key.begins_with is None else key.begins_with.failure
        if (failure := self.failure or key.failure or begun) is not None:
            # The same object is raised many times; it must not collect all their tracebacks.
            raise failure.with_traceback(None)

    def add(
        self, store: int, name: str, shape: tuple[int, ...], element_type: ElementType, operation: Operation
    ) -> Key:
        """Makes a key of the session's own, which no program reserves. It has no place yet."""
        with self._lock:
            key = Key(store, name, shape, element_type, operation, None, self._counters.operations[operation])
            self._keys[store, name, operation] = self._by_id[key.id] = key
            return key

    def place(self, placement: Placement) -> None:
        """Places all keys that have no place, and all later ones."""
        with self._lock:
            self._placement = placement
            for key in self._keys.values():
                if not key.connections:
                    key.place(placement)

    def steer(self, placement: Placement) -> None:
        """Says where the keys of the store STEERING go, before there is any."""
        self._steering = placement

    def start_at(self, rounds: Mapping[int, int], declared: Container[int]) -> None:
        """Sets the next round of all keys that have not been declared, and of all later ones.

        Args:
            rounds: The rounds by the keys' ids; those that are missing begin with round 0.
            declared: The ids of the keys that have been declared.
        """
        with self._lock:
            self._starts = rounds
            for key in self._keys.values():
                if key.id not in declared:
                    key.start_at(rounds.get(key.id, 0))

    def unfinished(self, round_of: Callable[[Key], int]) -> list[Key]:
        """The keys with operations that were reserved and are not complete.

        Args:
            round_of: Gives how many operations of a key are complete.
        """
        with self._lock:
            return [key for key in self._keys.values() if key.failure is None and key.reserved > round_of(key)]

    def forget(self, is_at_rest: Callable[[Key], bool]) -> list[Key]:
        """Forgets the keys that are not for all ranks, if they are at rest; returns those."""
        with self._lock:
            forgotten = [key for key in self._keys.values() if key.ranks and is_at_rest(key)]
            self._keys = {which: key for which, key in self._keys.items() if key not in forgotten}
            for key in forgotten:
                del self._by_id[key.id]
            return forgotten

    def fail(self, error: PsumError) -> list[Key]:
        """Makes every later reservation fail; returns the keys that there are."""
        with self._lock:
            self.failure = error
            return list(self._keys.values())

    def fail_key(self, key: Key, error: PsumError) -> None:
        """Makes every later reservation of one key fail."""
        with self._lock:
            key.failure = error
