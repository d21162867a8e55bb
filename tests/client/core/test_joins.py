"""A worker's session when a process joins the job: as a member that admits it, and as the process itself."""

import numpy as np
import pytest

from psum.client import Contribution, ElementType, InvalidError, Operation, Ticket
from psum.client.core.roll_call import Process
from psum.client.core.session import Session
from psum.client.core.store_numbers import STEERING
from psum.v1 import aggregator_pb2 as pb
from psum.wire import encode
from tests.client.core.messages import sent


def make(rank: int = 0, weights: tuple[int, ...] | None = ()) -> Session:
    """A session with two aggregators. With weights None, ranks would have to agree on them."""
    addresses = ["one:1", "two:1"]
    return Session(
        addresses,
        weights,
        rank=rank,
        num_workers=2,
        elastic=True,
        partition_bytes=16,
        credit_bytes=1 << 20,
        hand_over=lambda ticket: None,
        clock=lambda: 10.0,
    )


def begin(session: Session, name: str = "w", operation: Operation = Operation.SUM, store: int = 0) -> Ticket:
    """Starts an operation on eight numbers, with a source of ones and a target of zeros."""
    ticket = session.reserve(store, name, (8,), ElementType.INT32, operation, 0)
    ticket.start(np.ones(8, np.int32), np.zeros(8, np.int32), lambda _: None)
    session.submit(ticket, 0.0)
    return ticket


def answer(session: Session) -> None:
    """Answers all that is sent."""
    for aggregator in (0, 1):
        for message in sent(session, aggregator):
            if message.WhichOneof("kind") == "push":
                result = pb.Result(shards=message.push.shards)
                payload = bytes(sum(message.push.shards.lengths))
                session.receive(aggregator, encode(pb.ExchangeResponse(result=result), payload), 0.0)


def kinds(messages: list[pb.ExchangeRequest]) -> list[str | None]:
    return [message.WhichOneof("kind") for message in messages]


def aborted(ticket: Ticket) -> pb.Fault:
    return pb.Fault(code=pb.FAULT_CODE_ABORTED, id=ticket.key.id, text="aborted")


def loss(rank: int, generation: int) -> pb.Loss:
    return pb.Loss(rank=rank, generation=generation, text="it vanished", seconds_ago=2.0)


def test_aggregators_hear_of_an_admission_before_the_next_contribution() -> None:
    """Each is told the next round of each key that it knows, and after the losses that came before."""
    session = make()
    begin(session)
    assert [key.title for key in session.joins.unfinished()] == ["'w'"]
    answer(session)
    begin(session)
    answer(session)
    assert session.joins.unfinished() == []
    session.handle(0, pb.ExchangeResponse(losses=pb.Losses(losses=[loss(1, 0)])), memoryview(b""), (), 10.0)
    assert session.joins.admit(Process(1, 99)) == 1
    begin(session)
    for aggregator, expected in ((0, ["admit", "push"]), (1, ["losses", "admit", "push"])):
        messages = sent(session, aggregator)
        assert kinds(messages) == expected
        admission = messages[-2].admit.admission
        assert (admission.rank, admission.generation, admission.incarnation) == (1, 1, 99)
        assert list(admission.rounds) == [2]


def test_a_newcomer_begins_a_key_that_has_failed_after_all_rounds_that_have_begun() -> None:
    """Another member may not have heard of the failure. If all that know of it end, an aggregator that is started again
    must not wait for the newcomer in a round which that member began before it comes to admit the newcomer."""
    session = make()
    failed = begin(session)
    begin(session)
    session.receive(0, encode(pb.ExchangeResponse(fault=aborted(failed))), 0.0)
    later = begin(session, "later")
    answer(session)
    # The second operation on this key has not begun here when the key fails, and has elsewhere.
    session.receive(0, encode(pb.ExchangeResponse(fault=aborted(later))), 0.0)
    # Aggregators have never heard of this key. They must not take the newcomer for one that has used it before.
    unused = session.reserve(0, "unused", (8,), ElementType.INT32, Operation.SUM, 0)
    begin(session, "unused")
    session.expire(600.0, 601.0)
    assert unused.key.failure is not None
    session.joins.admit(Process(1, 99))
    for aggregator in (0, 1):
        [message] = [m for m in sent(session, aggregator) if m.WhichOneof("kind") == "admit"]
        admission = message.admit.admission
        rounds = dict(zip(admission.ids, admission.rounds, strict=True))
        assert rounds == {failed.key.id: 2, later.key.id: 2}


def test_a_key_for_some_ranks_is_not_in_an_admission() -> None:
    """It is forgotten when the join is over, and a new key may have its name."""
    session = make()
    passing = session.reserve(0, "passing", (8,), ElementType.INT32, Operation.BROADCAST, 0, ranks=(0, 1))
    passing.start(np.ones(8, np.int32), None, lambda _: None)
    session.submit(passing, 0.0)
    declared = [key for a in (0, 1) for m in sent(session, a) for key in m.declare.keys if key.name == "passing"]
    assert declared
    assert all(list(key.ranks) == [0, 1] for key in declared)
    # It has failed: nobody waits for its result.
    session.receive(0, encode(pb.ExchangeResponse(fault=aborted(passing))), 0.0)
    session.joins.admit(Process(1, 99))
    assert [list(m.admit.admission.ids) for a in (0, 1) for m in sent(session, a)] == [[], []]
    session.joins.complete()
    assert session.reserve(0, "passing", (3,), ElementType.INT32, Operation.SUM, 0).round == 0


def test_only_the_last_loss_of_a_rank_is_told() -> None:
    """Once a later process of the rank is admitted, the loss of the one before does not matter any more."""
    session = make()
    session.welcomed(pb.Welcome(losses=[loss(1, 0)]))
    assert session.joins.is_lost(1)
    session.joins.admit(Process(1, 99))
    assert not session.joins.is_lost(1)
    assert session.joins.losses() == []
    session.welcomed(pb.Welcome(losses=[loss(1, 1), loss(1, 0)]))
    assert session.joins.is_lost(1)
    assert session.joins.losses() == [loss(1, 1)]


def test_a_newcomer_tells_who_was_admitted_before_it_has_the_state() -> None:
    """An aggregator that is started again may hear it first, and must not take a process for the one before."""
    session = make(1)
    session.joins.wait()
    own, other = pb.Admission(rank=1, generation=1, incarnation=99), pb.Admission(rank=0, generation=3, incarnation=55)
    session.welcomed(pb.Welcome(admission=own, admissions=[other], losses=[loss(0, 2)]))
    session.welcomed(pb.Welcome(admission=own))
    assert session.joins.admissions.for_hello(0) == [other, own]
    assert not session.joins.is_lost(0)
    assert session.joins.losses() == []
    # What the donor says may be older.
    session.joins.adopt([pb.Admission(rank=0, generation=2, incarnation=54)])
    assert session.joins.admissions.generation(0) == 3
    # As a member it admits the next process itself, also if an aggregator has heard of that from another member.
    session.welcomed(pb.Welcome(admission=own, admissions=[pb.Admission(rank=0, generation=4, incarnation=56)]))
    assert session.joins.admit(Process(0, 56)) == 4


def test_operations_are_complete_at_once_while_a_process_waits_to_join() -> None:
    """A sum is what this process contributes, a broadcast changes nothing, and nobody is told, also if the weights of
    aggregators are not known."""
    for weights in ((), None):
        session = make(1, weights)
        session.joins.wait()
        tickets = [begin(session, operation=operation) for operation in (Operation.SUM, Operation.BROADCAST)]
        targets = [np.asarray(ticket.target).tolist() for ticket in tickets]
        assert session.finished == [(ticket, None) for ticket in tickets]
        assert targets == [[1] * 8, [0] * 8]
        assert tickets[0].contributions == (Contribution(0, 8, 1),)
        assert sent(session, 0) == sent(session, 1) == []


def test_a_roll_call_needs_no_message_of_its_own() -> None:
    """It travels with what is begun at the same time, ahead of it."""
    session = make()
    called, other = begin(session, "roll call", store=STEERING), begin(session)
    declare, push = sent(session, 0)
    assert kinds([declare, push]) == ["declare", "push"]
    assert {key.id for key in declare.declare.keys} == {called.key.id, other.key.id}
    assert push.push.shards.ids[0] == called.key.id
    assert other.key.id in push.push.shards.ids


def test_a_newcomer_takes_over_the_agreed_weights() -> None:
    """It cannot sum the reports, which the others did long ago. The first aggregator's keys need no weights."""
    session = make(1, None)
    session.joins.wait()
    session.joins.begin()
    begin(session, "roll call", store=STEERING)
    assert kinds(sent(session, 0)) == ["declare", "push"]
    # The first aggregator alone is beside one of two workers.
    session.adopt_weights([1, 0, 1, 0, 2])
    session.joins.adopt([])
    begin(session)
    declared = [key.name for a in (0, 1) for message in sent(session, a) for key in message.declare.keys]
    assert set(declared) == {"w"}
    assert session.weights_total == [1, 0, 1, 0, 2]


def test_a_process_that_waits_to_join_cannot_train_alone() -> None:
    """It would do so for ever if its program never makes an ElasticState."""
    session = make(1)
    session.joins.wait()
    for _ in range(64):
        begin(session)
    last = begin(session)
    with pytest.raises(InvalidError, match="Make the ElasticState before the training loop"):
        begin(session)
    [*_, (ticket, error)] = session.finished
    assert ticket is last
    assert isinstance(error, InvalidError)


def test_an_operation_that_is_given_up_while_a_process_waits_to_join_fails_its_key() -> None:
    """As at any other time."""
    session = make(1)
    session.joins.wait()
    ticket = session.reserve(0, "w", (8,), ElementType.INT32, Operation.SUM, 0)
    ticket.abort("no memory")
    session.submit(ticket, 0.0)
    with pytest.raises(Exception, match="no memory"):
        begin(session)


def test_a_newcomer_begins_with_the_rounds_that_it_was_told() -> None:
    """Those of keys that it has used before, of the roll call, which it uses before it has the state, and of keys that
    it uses later. Keys that the job does not know begin with round 0."""
    session = make(1)
    session.joins.wait()
    used = begin(session).key
    roll_call, later = (
        make().reserve(store, name, (8,), ElementType.INT32, Operation.SUM, 0).key.id
        for store, name in ((STEERING, "roll call"), (0, "later"))
    )
    for ids, rounds in (([used.id, later], [7, 8]), ([roll_call, used.id], [9, 7])):
        admission = pb.Admission(rank=1, generation=4, incarnation=9, ids=ids, rounds=rounds)
        session.welcomed(pb.Welcome(admission=admission))
    session.joins.begin()
    called = begin(session, "roll call", store=STEERING)
    assert called.round == 9
    [declared, _] = sent(session, 0)
    assert [shard.round for shard in declared.declare.keys[0].shards] == [9, 9]
    answer_of = begin(session)
    assert session.finished[-1][0] is answer_of
    session.joins.adopt([pb.Admission(rank=0, generation=2, incarnation=3)])
    assert [begin(session, name).round for name in ("w", "later", "new")] == [7, 8, 0]
    assert called.key.reserved == 10
    assert session.joins.generation == 4
    assert [each.rank for each in session.joins.admissions.for_hello(0)] == [0, 1]
