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


def overdue(rank: int, ticket: Ticket, seconds: float, addresses: Sequence[str]) -> RoundTimeoutError:
    """No result came from these aggregators; with none given, the operation was not sent to any yet."""
    relayed = ticket.key.relayed
    where = f"{'relay ' if relayed else ''}{', '.join(addresses)}"
    if not addresses:
        where = f"{'its relay' if relayed else 'its aggregators'}, to which it was not yet sent"
    suspect = "that relay, or an aggregator that it forwards to" if relayed else "that aggregator"
    return RoundTimeoutError(
        f"rank {rank} has waited {seconds:.1f} s for the result of key {ticket.key.title} round {ticket.round} from"
        f" {where}; other ranks may be stuck, or {suspect}",
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
