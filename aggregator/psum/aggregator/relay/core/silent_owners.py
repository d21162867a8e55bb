"""When a relay warns of rounds that its group has finished and whose owner says nothing.

An owner warns of a round that waits for other ranks, and the relay passes the warning on. Without one, the workers of
the group would not know what they wait for: the owner may be out of reach, or lack what this relay has sent.
"""

from collections.abc import Iterator
from typing import Final

from psum.aggregator.core.stall_warnings import StallWarnings
from psum.aggregator.relay.core.forwarded import ForwardedShard
from psum.aggregator.relay.core.uplink import Uplink

#: How many times as long as an owner a relay waits before it warns. By then the owner's own warning is here.
_PATIENCE: Final = 1.5


class SilentOwners:
    """The warnings about one job.

    Args:
        job: The job's name.
        uplink: What is sent to the owners.
        warn_after: Seconds after which an owner warns of a round.
    """

    def __init__(self, job: str, uplink: Uplink, warn_after: float) -> None:
        self._job = job
        self._uplink = uplink
        self._warnings = [StallWarnings(_PATIENCE * warn_after) for _ in uplink.addresses]
        self._spoke: dict[int, float] = {}
        """When an owner has warned of something last, by the uplink's index."""

    def spoke(self, uplink: int, now: float) -> None:
        """Notes that the owner at the end of an uplink has warned of something."""
        self._spoke[uplink] = now

    def warnings(self, now: float) -> Iterator[str]:
        """The warnings that are due: for each uplink of one round, since others mostly wait for the same."""
        for uplink, warnings in enumerate(self._warnings):
            shard = self._oldest(uplink)
            if shard is None or shard.cancelled or self._spoke.get(uplink, shard.queued) > shard.queued:
                continue
            waited = now - shard.queued
            if warnings.due((*shard.id, shard.round), waited):
                yield self._text(uplink, shard, waited)

    def _oldest(self, uplink: int) -> ForwardedShard | None:
        window = self._uplink.windows[uplink]
        for shard in (*window.outstanding.values(), *window.postponed):
            return shard
        return window.scheduler.first

    def _text(self, uplink: int, shard: ForwardedShard, waited: float) -> str:
        address, missing = self._uplink.addresses[uplink], self._uplink.unreached(uplink)
        why = "which does not say what it waits for; its log and psum status may tell"
        if missing == [address]:
            why = "to which it has no connection"
        elif missing:
            why = f"and sends nothing while it has no connection to {', '.join(missing)}"
        return (
            f"job {self._job!r} key {shard.forwarded.key.title} round {shard.round}: {self._uplink.title} has had all"
            f" contributions of its group for {waited:.0f} s, and no result from aggregator {address}, {why}"
        )
