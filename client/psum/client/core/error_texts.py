"""The texts of the errors with which a key fails on this worker: what it did, which key and round, what to look at.

Faults are handled elsewhere: running_operations.py ends the operations of a failed key, session.py receives the faults
that aggregators report.
"""

from collections.abc import Sequence

from psum.client.core.key import Key
from psum.client.core.key_rounds import KeyRounds
from psum.client.core.placement import Shard
from psum.client.core.ticket import Ticket
from psum.wire.errors import AbortedError, ProtocolError, RoundTimeoutError


def never_started(rank: int, rounds: KeyRounds, seconds: float) -> RoundTimeoutError:
    """A round was reserved and neither started nor aborted, while a later one waits for it."""
    return RoundTimeoutError(
        f"rank {rank} has waited {seconds:.1f} s to begin round {min(rounds.waiting)} of key {rounds.key.title}: round"
        f" {rounds.round} was reserved before it, and neither started nor aborted; was the program interrupted there?",
        key=rounds.key.id,
        round=rounds.round,
    )


def overdue(
    rank: int, ticket: Ticket, seconds: float, addresses: Sequence[str], warning: tuple[float, str] | None = None
) -> RoundTimeoutError:
    """No result came in time, and no aggregator has said that the round has failed.

    Args:
        rank: This worker's rank.
        ticket: The operation.
        seconds: How long it has waited.
        addresses: Where no result came from; none: the operation was not sent to any aggregator yet.
        warning: The last warning that came from there meanwhile, and how many seconds ago. It mostly says which ranks
            the round waits for.
    """
    relayed = ticket.key.relayed
    where = f"{'relay ' if relayed else ''}{', '.join(addresses)}"
    if not addresses:
        where = f"{'its relay' if relayed else 'its aggregators'}, to which it was not yet sent"
    suspect = "that relay, or an aggregator that it forwards to" if relayed else "that aggregator"
    said = "" if warning is None else f". The last warning from there came {warning[0]:.0f} s ago: {warning[1]}"
    return RoundTimeoutError(
        f"rank {rank} has waited {seconds:.1f} s for the result of key {ticket.key.title} round {ticket.round} from"
        f" {where}; other ranks may be stuck, or {suspect}{said}",
        key=ticket.key.id,
        round=ticket.round,
    )


def aborted(rank: int, ticket: Ticket) -> AbortedError:
    """This worker aborted the round: its value will never be there."""
    return AbortedError(
        f"rank {rank} could not contribute to key {ticket.key.title} round {ticket.round}: {ticket.reason}",
        key=ticket.key.id,
        round=ticket.round,
        ranks=[rank],
    )


def wrong_size(address: str, key: Key, shard: Shard, received: int, expected: int) -> ProtocolError:
    """A result does not have the size of its shard."""
    return ProtocolError(
        f"aggregator {address} answered shard {shard.index} of key {key.title} with {received} bytes; expected"
        f" {expected}"
    )
