"""The texts of a relay's group in an elastic job: what happened, to whom, and what it means for the group."""

from collections.abc import Sequence
from typing import Final

from psum.aggregator.core.key import Key
from psum.aggregator.core.losses import Loss
from psum.aggregator.relay.core.group_roster import GroupRoster
from psum.runtime import rank_names
from psum.wire.errors import WorkerLostError

TOO_LATE: Final = "its process came back to its relay, which was started again, after that had gone on without it"
GONE_BEFORE: Final = "its process was admitted, and ended before its relay let it in"


def lost(job: str, loss: Loss, roster: GroupRoster) -> str:
    """A rank of the group is lost. Its users are told by the owners, who know the whole job."""
    left = len(roster.known)
    then = (
        f"its group on this relay goes on with {left} ranks"
        if left
        else "it was the last one of its group on this relay"
    )
    return f"rank {loss.rank} of job {job!r} is lost: {loss.text}; {then}"


def all_lost(job: str, ranks: Sequence[int], title: str) -> WorkerLostError:
    """No rank of the group is left."""
    return WorkerLostError(
        f"{rank_names(sorted(ranks))} of elastic job {job!r}, all that {title} stood for, are lost", ranks=sorted(ranks)
    )


def deserted_key(job: str, key: Key) -> WorkerLostError:
    """No rank of the group is left that uses a key of some ranks."""
    return WorkerLostError(
        f"the ranks of elastic job {job!r} behind this relay that use key {key.title} are lost", key=key.id
    )


def given_up(job: str, unknown: int, timeout: float) -> str:
    """Ranks of the group have not come back to a relay that was started again."""
    return (
        f"{unknown} ranks of a group of job {job!r} did not come back within {timeout:g} s after this relay was"
        " started again; the group goes on without them"
    )
