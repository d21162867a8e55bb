"""What a front end keeps for each client, such as the gradients that lie in its shared memory."""

import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from psum.client.client import Client

T = TypeVar("T")


class PerClient(Generic[T]):
    """One object for each client, made when it is first needed. It ends with the client. From any thread.

    Args:
        make: Makes the object of a client, and keeps at most a weak reference to the client: a strong one would keep
            the client alive as long as the process.
    """

    def __init__(self, make: Callable[[Client], T]) -> None:
        self._make = make
        self._made: weakref.WeakKeyDictionary[Client, T] = weakref.WeakKeyDictionary()
        # Reentrant: a signal's handler may use any client anywhere.
        self._lock = threading.RLock()

    def of(self, client: Client) -> T:
        """The object of a client."""
        with self._lock:
            made = self._made.get(client)
            # A signal's handler may have made one meanwhile.
            return self._made.setdefault(client, self._make(client)) if made is None else made
