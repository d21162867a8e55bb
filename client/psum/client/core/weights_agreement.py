"""The agreement of all ranks on the weights of the aggregators, before any key can be placed.

It is the sum of all ranks' reports about what runs on their hosts, on a key of psum's own. So all that holds for sums
holds for it: it comes to all ranks alike, survives restarts and broken connections, and its errors name the ranks that
are missing. A worker reports with its first operation, which could not end before all ranks have begun it either.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final

from psum.client.core.key_registry import KeyRegistry
from psum.client.core.operation import Operation
from psum.client.core.placement import Placement
from psum.client.core.roles import Aggregators
from psum.client.core.running_operations import RunningOperations
from psum.client.core.store_numbers import INTERNAL
from psum.client.core.ticket import Ticket
from psum.wire import ElementType
from psum.wire.errors import FaultError, PsumError

_log = logging.getLogger(__name__)

#: The name of the key in the store of psum's own keys.
NAME: Final = "aggregators beside workers"

#: Before everything that a program pushes.
_PRIORITY: Final = (1 << 63) - 1


class WeightsAgreement:
    """Holds operations until all ranks have agreed. Used from the client's thread only.

    Args:
        aggregators: The aggregators with their processes. The first process sums the reports.
        operations: What runs the operations.
        registry: The keys.
        placement: Makes the placement from the weights.
        shares_known: Called with each connection's share of the bytes on its link; see Aggregators.link_shares.

    Attributes:
        over: Whether it has ended.
        total: The sum of all reports, None before it is known.
    """

    def __init__(
        self,
        aggregators: Aggregators,
        operations: RunningOperations,
        registry: KeyRegistry,
        placement: Callable[[tuple[int, ...]], Placement],
        shares_known: Callable[[Sequence[float]], None],
    ) -> None:
        self.over = False
        self.total: Sequence[int] | None = None
        self._begun = False
        self._aggregators = aggregators
        self._operations = operations
        self._registry = registry
        self._placement = placement
        self._shares_known = shares_known
        self._beside: Collection[int] = ()
        self._held: list[tuple[Ticket, float]] = []

    def hold(self, ticket: Ticket, now: float, beside: Collection[int], *, is_member: bool) -> None:
        """Keeps an operation until the weights are known. The first one begins the agreement.

        Args:
            ticket: The operation.
            now: The time, in seconds.
            beside: The processes of aggregators on this worker's host.
            is_member: Whether this worker counts; see roles.report.
        """
        self._held.append((ticket, now))
        if not self._begun:
            self._begun = True
            self._beside = beside
            report = self._aggregators.report(beside, is_member=is_member)
            key = self._registry.add(INTERNAL, NAME, report.shape, ElementType.INT64, Operation.SUM)
            key.keeps_sum = True
            # Its owner must be known without the agreement.
            key.place(self._placement((1, *[0] * (len(self._aggregators) - 1))))
            summing = Ticket(key, 0, _PRIORITY, lambda ticket: None)
            summing.start(report, report, lambda error: None)
            self._operations.run_own(summing, lambda error: self._end(report.tolist(), error), now)

    def adopt(self, total: Sequence[int], beside: Collection[int]) -> None:
        """Takes over what the others have agreed on, in a process that joins an elastic job.

        Args:
            total: The sum of their reports.
            beside: The processes of aggregators on this worker's host.
        """
        self.over = True
        self.total = total
        weights = self._aggregators.weights_of(total)
        _log.info("weights of the aggregators, by where they run: %s", ",".join(map(str, weights)))
        self._registry.place(self._placement(weights))
        self._shares_known(self._aggregators.link_shares(weights, beside, total))

    def _end(self, total: Sequence[int], error: PsumError | None) -> None:
        """Places all keys by the sum of the reports, and runs the operations that were held; or fails everything."""
        if error is None:
            self.adopt(total, self._beside)
        else:
            self.over = True
            # It is about a key, but this worker can go on with none. The other ranks must not wait for it.
            self._operations.fail(error.of_the_job() if isinstance(error, FaultError) else error)
        for ticket, now in self._held:
            self._operations.submit(ticket, now)
        self._held.clear()
