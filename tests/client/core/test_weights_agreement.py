"""How the ranks of a job agree on the weights of aggregators before they place a key, without any network."""

from collections.abc import Iterator

import numpy as np
import pytest

from psum.client import ElementType, Operation, Ticket, WorkerLostError
from psum.client.core.session import Session
from psum.client.core.ticket import State
from psum.client.core.weights_agreement import NAME
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode, encode, to_columns


class Ranks:
    """Two ranks with three aggregators, of which two run beside them, and the messages between them."""

    def __init__(self) -> None:
        self.handed_over: list[Ticket] = []
        self.sessions = [
            Session(
                ["a:1", "b:1", "c:1"],
                None,
                rank=rank,
                partition_bytes=1 << 20,
                credit_bytes=1 << 24,
                hand_over=self.handed_over.append,
            )
            for rank in range(2)
        ]
        for rank, session in enumerate(self.sessions):
            session.beside = [rank]

    def push(self, rank: int, key: str) -> Ticket:
        """Starts a sum of 1 MiB."""
        value = np.ones(1 << 18, np.float32)
        ticket = self.sessions[rank].reserve(0, key, value.shape, ElementType.FLOAT32, Operation.SUM, 0)
        ticket.start(value, value, lambda _: None)
        self.submit(rank)
        return ticket

    def submit(self, rank: int) -> None:
        """Hands over what was started or aborted."""
        while self.handed_over:
            self.sessions[rank].submit(self.handed_over.pop(0), 0.0)

    def sent(self, rank: int) -> list[list[tuple[str, bytes]]]:
        """What a rank sends to each aggregator: kinds of messages, and payloads."""
        return [[*self._messages(self.sessions[rank], aggregator)] for aggregator in range(3)]

    @staticmethod
    def _messages(session: Session, aggregator: int) -> Iterator[tuple[str, bytes]]:
        while (data := session.next_message(aggregator)) is not None:
            message, payload = decode(pb.ExchangeRequest, data)
            yield str(message.WhichOneof("kind")), bytes(payload)

    def agree(self, total: list[int]) -> None:
        """Gives both ranks the sum of the reports."""
        for session in self.sessions:
            [key] = [key for key in session._registry._by_id.values() if key.name == NAME]
            shards = to_columns([ShardRound(key.id, 0, 0, length=8 * len(total))])
            answer = pb.ExchangeResponse(result=pb.Result(shards=shards))
            session.receive(0, encode(answer, np.array(total, np.int64).tobytes()), 0.0)


def test_ranks_report_their_hosts_before_they_place_a_key() -> None:
    """The first operation sends a report to the first aggregator. Operations run when the sum of the reports is there,
    and go to the aggregators with the weights that follow."""
    ranks = Ranks()
    tickets = [ranks.push(rank, key) for rank in (0, 1) for key in ("w", "v")]
    reports = []
    for rank in range(2):
        [(declared, _), (pushed, report)], *others = ranks.sent(rank)
        assert (declared, pushed, others) == ("declare", "push", [[], []])
        reports.append(np.frombuffer(report, np.int64))
    assert [list(report) for report in reports] == [[1, 0, 0, 1, 0, 0, 1], [0, 1, 0, 0, 2, 0, 1]]
    assert [ranks.sessions[rank].finished for rank in range(2)] == [[], []]
    ranks.agree(np.sum(reports, axis=0).tolist())
    for rank in range(2):
        assert not ranks.sessions[rank].finished
        owned = [sum(len(payload) for _, payload in messages) for messages in ranks.sent(rank)]
        assert owned == [1 << 20, 1 << 20, 0]
    tickets.append(ranks.push(0, "u"))
    assert [len(messages) for messages in ranks.sent(0)] == [2, 2, 0]
    assert all(ticket.state is State.RUNNING for ticket in tickets)


@pytest.mark.parametrize("of_the_job", [False, True])
def test_operations_that_wait_for_the_weights_fail_with_them(of_the_job: bool) -> None:
    """They cannot run without, and nor can later ones. What was aborted is not reported."""
    ranks = Ranks()
    session = ranks.sessions[0]
    ticket = ranks.push(0, "w")
    session.reserve(0, "v", (1,), ElementType.FLOAT32, Operation.SUM, 0).abort("no value")
    ranks.submit(0)
    [key] = [key for key in session._registry._by_id.values() if key.name == NAME]
    fault = WorkerLostError("rank 1 vanished", key=None if of_the_job else key.id, ranks=[1])
    session.receive(0, encode(pb.ExchangeResponse(fault=fault.to_message())), 0.0)
    [(failed, error)] = session.finished
    assert failed is ticket
    assert str(error) == "rank 1 vanished"
    with pytest.raises(WorkerLostError, match="rank 1 vanished"):
        ranks.push(0, "w")
    assert not session.busy
    # So it is passed on to all aggregators.
    assert isinstance(session.failure, WorkerLostError)
    assert session.failure.key is None
