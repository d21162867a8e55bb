"""The objects that the engine refers to by numbers, and a gate for new ones."""

import itertools
import threading
from typing import Generic, TypeVar

from psum.mxnet.compat import MXNetError
from psum.runtime import Waiters

T = TypeVar("T")


class Registry(Generic[T]):
    """Keeps operations alive from their push until the engine releases them. From any thread."""

    def __init__(self) -> None:
        self._operations: dict[int, T] = {}
        self._tokens = itertools.count(1)
        self._emptied = Waiters()
        self._keepers: set[int] = set()
        """Threads that keep all others from adding operations."""
        self._opened = Waiters()
        self._ended = False
        self._pushing: dict[int, int] = {}
        """The threads that are about to give the engine an operation, by its number."""

    def __len__(self) -> int:
        return len(self._operations)

    def number(self) -> int:
        """Returns a new number for an operation."""
        return next(self._tokens)

    def add(self, token: int, operation: T) -> None:
        """Keeps an operation that is about to be pushed, until `remove`. A call of `pushed` must follow.

        Raises:
            MXNetError: The process ends.
        """
        self._pushing[token] = threading.get_ident()
        # Before the gate is looked at: a thread that closes the gate looks for operations after that.
        self._operations[token] = operation
        while self._keepers or self._ended:
            if self._ended:
                self.remove(token)
                raise MXNetError("this process ends: nothing can be summed any more")
            if self._may_add():
                break
            self.remove(token)
            self._opened.wait_for(self._may_add)
            self._operations[token] = operation

    def pushed(self, token: int) -> None:
        """The engine has the operation, or has refused it."""
        self._pushing.pop(token, None)

    def get(self, token: int) -> T | None:
        """Returns an operation. None if the handler of a signal has ended its push: the engine may have it anyway."""
        return self._operations.get(token)

    def all(self) -> list[T]:
        """Returns all operations."""
        return list(self._operations.values())

    def remove(self, token: int) -> None:
        """Forgets an operation."""
        self._operations.pop(token, None)
        if self._emptied and len(self._operations) <= len(self._pushing):
            self._emptied.wake()

    def wait_until_empty(self, timeout: float) -> bool:
        """Waits until there are no operations. Returns False if there still are some after timeout seconds."""
        return self._emptied.wait_for(lambda: not self._operations, timeout)

    def wait_until_released(self) -> None:
        """Waits until there are no operations except those that this thread is about to push.

        There are such if the handler of a signal calls this and has interrupted the push.
        """
        me = threading.get_ident()
        self._emptied.wait_for(lambda: len(self._operations) <= list(self._pushing.values()).count(me))

    def close(self) -> None:
        """Makes all threads but this one wait before they add anything, until `open`."""
        self._keepers.add(threading.get_ident())

    def open(self) -> None:
        """Ends what `close` began."""
        self._keepers.discard(threading.get_ident())
        self._opened.wake()

    def end(self) -> None:
        """Refuses all further operations."""
        self._ended = True
        self._opened.wake()

    def _may_add(self) -> bool:
        return self._ended or self._keepers <= {threading.get_ident()}
