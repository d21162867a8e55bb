"""The planes that a worker, or a relay, offers to aggregators."""

import logging
from collections.abc import Sequence
from typing import Self

from psum.client.settings import Settings
from psum.planes import NAMES, GrowingSegment, Limit, Offer, Plane, PlaneError, WorkerPlane, WorkerTerms
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ProtocolError

_log = logging.getLogger(__name__)


class PlaneOffers:
    """Makes the offers of one worker, one set for each stream.

    Args:
        title: Who offers, for the log, such as "rank 3".
        asked_for: The name of the plane that a person asked for, or "auto".
        planes: The planes to offer, the best first.
        shm_directory: Where shared memory is kept.
        shm_limit: How full psum may make the file system there.
        credit_bytes: How many bytes may be under way to one aggregator, at least one shard.
        staging: Memory that aggregators on this host may read contributions from, None if there is none.
    """

    def __init__(
        self,
        title: str,
        asked_for: str,
        planes: Sequence[Plane],
        *,
        shm_directory: str,
        shm_limit: Limit,
        credit_bytes: int,
        staging: GrowingSegment | None = None,
    ) -> None:
        self._title = title
        self._asked_for = asked_for
        self._planes = planes
        self._warned = False
        self._terms = WorkerTerms(
            shm_directory=shm_directory,
            shm_limit=shm_limit,
            credit_bytes=credit_bytes,
            staging=staging,
            lacking=self._warn_of_messages,
        )
        self._unusable: set[tuple[str, pb.Plane.ValueType]] = set()
        """Planes that failed after an aggregator had chosen them, by the aggregator's address."""

    @classmethod
    def of(cls, settings: Settings, planes: Sequence[Plane], staging: GrowingSegment | None) -> Self:
        """The offers of a worker with these settings."""
        return cls(
            f"rank {settings.rank}",
            settings.plane,
            planes,
            shm_directory=settings.shm_directory,
            shm_limit=settings.shm_limit,
            # A shard larger than the credit passes alone, and needs room too.
            credit_bytes=max(settings.credit_bytes, settings.partition_bytes),
            staging=staging,
        )

    def make(self, address: str) -> list[Offer]:
        """The offers for one stream to an aggregator, the best first. The caller closes them."""
        offers = []
        for plane in self._planes:
            if (address, plane.kind) in self._unusable:
                continue
            try:
                offer = plane.offer(address, self._terms)
            except PlaneError as error:
                level = logging.WARNING if self._asked_for == plane.name or error.scarce else logging.DEBUG
                _log.log(level, "plane %s is not offered to aggregator %s: %s", plane.name, address, error)
                continue
            if offer is not None:
                offers.append(offer)
        return offers

    def accepted(self, offers: list[Offer], address: str, welcome: pb.Welcome) -> WorkerPlane:
        """The plane that an aggregator has chosen; its offer is taken out of the list.

        Raises:
            ProtocolError: It was not offered, or what the aggregator named cannot be used. Then it is not offered to
                this aggregator again.
        """
        chosen = next((offer for offer in offers if offer.kind == welcome.plane), None)
        if chosen is None:
            raise ProtocolError(f"it chose plane {welcome.plane}, which it was not offered")
        offers.remove(chosen)
        try:
            return chosen.accepted(welcome)
        except PlaneError as error:
            self._unusable.add((address, chosen.kind))
            name = NAMES[chosen.kind]
            _log.warning(
                "%s cannot use plane %s with aggregator %s, and uses a slower one: %s",
                self._title,
                name,
                address,
                error,
            )
            raise ProtocolError(f"it chose plane {name}, which cannot be used: {error}") from None

    def _warn_of_messages(self, error: PlaneError) -> None:
        # Once for all aggregators and reconnections: it is the same file system.
        if not self._warned:
            self._warned = True
            _log.warning("what is pushed travels in messages, though an aggregator is on this host: %s", error)
