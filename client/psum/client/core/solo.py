"""A process that waits to join an elastic job: its operations are complete at once, without the others.

A program makes its model, optimizer and communication as in any other process, and frameworks compare and broadcast
values meanwhile. All that is replaced by the state of the job when the process is let in. The result of an operation is
this process's own contribution.
"""

from typing import Final

from psum.client.core.buffers import flat
from psum.client.core.key import Key
from psum.client.core.operation import Operation
from psum.client.core.ticket import Ticket
from psum.wire.errors import InvalidError

#: How many operations on one key may be complete without the others. A training would go beyond it, and it must not go
#: on alone.
_MOST_ROUNDS: Final = 64


class Solo:
    """Completes operations.

    Args:
        title: Which worker this is, for people.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._rounds: dict[int, int] = {}
        """How many operations each key has had, by its id."""

    def takes(self, key: Key) -> bool:
        """Whether operations on a key are complete without the others: on all that have nothing to do with the join."""
        return not (key.steers or key.ranks)

    def complete(self, ticket: Ticket) -> None:
        """Writes an operation's result to its target.

        Raises:
            InvalidError: The key has had so many operations that the program seems to train.
        """
        key = ticket.key
        done = self._rounds.get(key.id, 0)
        if done >= _MOST_ROUNDS:
            raise InvalidError(
                f"{self._title} waits to join an elastic job, and uses key {key.title!r} for the {done + 1}th time"
                " meanwhile, as if it trained alone. Make the ElasticState before the training loop, which waits until"
                " the members let this process in",
                key=key.id,
            )
        self._rounds[key.id] = done + 1
        ticket.alone = True
        source, target = ticket.source, ticket.target
        sums = key.operation is Operation.SUM and key.nbytes > 0
        if sums and source is not None and target is not None and target is not source:
            flat(target)[:] = flat(source)
