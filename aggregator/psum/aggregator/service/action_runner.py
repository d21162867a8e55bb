"""Carries out a job's actions: has sums made and delivered, and puts all other messages into the workers' queues."""

import logging
from collections.abc import Callable, Iterable, Sequence

from psum.aggregator.core.actions import (
    Action,
    Admit,
    Ask,
    ConnectUplinks,
    Decide,
    Deliver,
    Detach,
    EndStreams,
    LeaveUplinks,
    PartUplinks,
    Refuse,
    Release,
    ReopenUplinks,
    Report,
    ReturnCredit,
    SendUplinks,
    Sum,
    SumTogether,
    Sync,
    TellCandidates,
    TellLosses,
    TellTiming,
    UplinkAction,
    Warn,
)
from psum.aggregator.core.job import Job
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.delivery import Delivery
from psum.aggregator.service.fault_log import FaultLog
from psum.aggregator.service.summation import Summation
from psum.aggregator.sums.pool import PriorityPool
from psum.planes import Arena
from psum.v1 import aggregator_pb2 as pb
from psum.wire import to_columns

_log = logging.getLogger(__name__)


class ActionRunner:
    """Carries out actions, and tells the job when a sum is made.

    Args:
        pool: Makes sums in threads.
        connections: The connection of a job's rank, None if it is not connected.
        arena: A job's shared memory for sums, None if none of its workers shares memory.
        uplinks: Tells the connections of a relay's group to the aggregators that it forwards to.
        detach: Forgets the connection of a job's rank, which is about to end.
        decide: Carries out what was decided about a process that waits to join.
    """

    def __init__(
        self,
        pool: PriorityPool,
        connections: Callable[[Job, int], WorkerConnection | None],
        arena: Callable[[Job], Arena | None] = lambda job: None,
        uplinks: Callable[[Job, UplinkAction], None] = lambda job, action: None,
        detach: Callable[[Job, int], None] = lambda job, rank: None,
        decide: Callable[[Job, Admit | Refuse], None] = lambda job, action: None,
    ) -> None:
        self._connections = connections
        self._uplinks = uplinks
        self._detach = detach
        self._decide = decide
        self._faults = FaultLog()
        self._delivery = Delivery(connections)
        self._summation = Summation(pool, arena, self.perform, self._delivery)

    def perform(self, job: Job, actions: Iterable[Action]) -> None:
        """Carries out the actions of one job in order; consecutive sums or results are carried out together."""
        sums: list[Sum] = []
        results: list[Deliver] = []
        for action in actions:
            match action:
                case Sum():
                    sums.append(action)
                case Deliver():
                    results.append(action)
                case TellTiming():
                    # In each queue it goes ahead of results anyway.
                    self._send_timing(job, action)
                case _:
                    self._sum_and_deliver(job, sums, results)
                    sums, results = [], []
                    self._perform_other(job, action)
        self._sum_and_deliver(job, sums, results)

    def _sum_and_deliver(self, job: Job, sums: Sequence[Sum], results: Sequence[Deliver]) -> None:
        if results:
            self._delivery.deliver(job, results)
        if sums:
            self._summation.sum(job, sums)

    def _perform_other(self, job: Job, action: Action) -> None:
        match action:
            case SumTogether():
                self._summation.sum_together(job, action)
            case ReturnCredit(rank, rounds):
                job.counters.returned_credits += len(rounds)
                taken = pb.Taken(shards=to_columns(rounds))
                self._send(job, rank, pb.ExchangeResponse(taken=taken))
            case Ask(rank, rounds):
                wanted = pb.Want(shards=to_columns(rounds))
                self._send(job, rank, pb.ExchangeResponse(want=wanted))
            case Sync(number, ranks, departures):
                for rank in ranks:
                    if (connection := self._connections(job, rank)) is not None:
                        sync = pb.Sync(number=number, departures=departures)
                        connection.queue.put_last(pb.ExchangeResponse(sync=sync))
                        connection.filled.set()
            case EndStreams(ranks):
                for rank in ranks:
                    if (connection := self._connections(job, rank)) is not None:
                        connection.recalled = True
                        connection.abandon()
            case Release(rank):
                self._send(job, rank, pb.ExchangeResponse(farewell=pb.Farewell()), last=True)
            case Warn(text, ranks):
                _log.warning("%s", text, extra={"job": job.name})
                for rank in ranks:
                    self._send(job, rank, pb.ExchangeResponse(notice=pb.Notice(text=text)))
            case TellLosses(losses, ranks):
                for rank in ranks:
                    self._send(job, rank, pb.ExchangeResponse(losses=pb.Losses(losses=losses)))
            case TellCandidates(candidates, ranks):
                for rank in ranks:
                    self._send(job, rank, pb.ExchangeResponse(candidates=pb.Candidates(candidates=candidates)))
            case Decide(rank, decision):
                self._send(job, rank, pb.ExchangeResponse(decision=decision))
            case Detach(rank):
                self._detach(job, rank)
            case Admit() | Refuse():
                self._decide(job, action)
            case Report(fault, ranks):
                job.counters.faults[fault.kind] += 1
                self._faults.note(job, fault)
                for rank in ranks:
                    self._send(job, rank, pb.ExchangeResponse(fault=fault.to_message()), last=fault.key is None)
            case ConnectUplinks() | ReopenUplinks() | SendUplinks() | LeaveUplinks() | PartUplinks():
                self._uplinks(job, action)

    def _send_timing(self, job: Job, action: TellTiming) -> None:
        for rank, waiting in action.waiting.items():
            if (connection := self._connections(job, rank)) is not None:
                # The result follows at once, and wakes the sender.
                connection.queue.put_timing(
                    pb.Timing(
                        id=action.key.id,
                        shard=action.shard,
                        round=action.round,
                        last_rank=action.last_rank,
                        waiting_seconds=waiting,
                        summing_seconds=action.summing,
                        forwarding_seconds=action.forwarding,
                    )
                )

    def _send(self, job: Job, rank: int, message: pb.ExchangeResponse, *, last: bool = False) -> None:
        if (connection := self._connections(job, rank)) is not None:
            if last:
                connection.finish(message)
            else:
                connection.say(message)
