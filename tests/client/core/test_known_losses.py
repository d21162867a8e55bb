"""What a worker keeps of the losses of its elastic job, and tells its aggregators."""

from psum.client.core.known_losses import KnownLosses
from psum.v1 import aggregator_pb2 as pb


def test_each_other_aggregator_is_told_once() -> None:
    """The one that has told of a loss knows it."""
    losses = KnownLosses(2)
    losses.note([pb.Loss(rank=3, text="gone")], 10.0, told_by=0)
    assert losses.take_news(0, 10.0) == []
    assert [loss.rank for loss in losses.take_news(1, 10.0)] == [3]
    assert losses.take_news(1, 10.0) == []


def test_a_loss_before_an_admission_does_not_matter_any_more() -> None:
    """An aggregator that is started again would take it for that of the present process."""
    losses = KnownLosses(1)
    losses.note([pb.Loss(rank=3, text="gone")], 10.0)
    assert [loss.rank for loss in losses.all(10.0, {})] == [3]
    assert losses.all(10.0, {3: pb.Admission(rank=3, generation=1)}) == []


def test_a_relay_is_told_of_all_losses_of_its_group() -> None:
    """Also if another process was admitted in the rank since, maybe elsewhere: the relay need not wait for it."""
    losses = KnownLosses(1)
    losses.note([pb.Loss(rank=3, text="gone", in_group=True), pb.Loss(rank=4, text="gone")], 10.0)
    losses.note([pb.Loss(rank=3, text="gone again", generation=1)], 11.0)
    admitted = {rank: pb.Admission(rank=rank, generation=2) for rank in (3, 4)}
    assert [(loss.rank, loss.generation, loss.in_group) for loss in losses.all(12.0, admitted)] == [(3, 1, True)]
