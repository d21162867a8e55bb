"""A worker behind a relay tells an owner of shards that it lives: seldom, and each second while the relay is away."""

from psum.client.core.vouch_pace import REFRESH_SECONDS, URGENT_SECONDS, VouchPace
from psum.v1 import aggregator_pb2 as pb


def test_while_nothing_is_wrong_an_owner_hears_of_a_worker_now_and_then() -> None:
    """One that was started again hears it too."""
    pace = VouchPace()
    assert [pace.pause(pb.STANDING_PRESENT, away=False) for _ in range(3)] == [REFRESH_SECONDS] * 3


def test_while_the_relay_is_away_an_owner_hears_of_a_worker_each_second() -> None:
    """Also if it has not noticed that the relay is away, or does not answer."""
    pace = VouchPace()
    pace.pause(pb.STANDING_PRESENT, away=False)
    for standing in (pb.STANDING_PRESENT, pb.STANDING_AWAITED, None, pb.STANDING_UNSPECIFIED):
        assert pace.pause(standing, away=True) == URGENT_SECONDS


def test_an_owner_hears_of_a_worker_until_its_relay_is_there() -> None:
    """The worker has its relay again. The relay waits for others before it connects to owners."""
    pace = VouchPace()
    assert [pace.pause(pb.STANDING_AWAITED, away=False) for _ in range(3)] == [URGENT_SECONDS] * 3
    assert pace.pause(pb.STANDING_PRESENT, away=False) == REFRESH_SECONDS


def test_an_owner_that_does_not_know_the_worker_is_asked_again_soon() -> None:
    """Its relay comes when all of its group have joined."""
    pace = VouchPace()
    assert [pace.pause(pb.STANDING_UNSPECIFIED, away=False) for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    assert pace.pause(pb.STANDING_PRESENT, away=False) == REFRESH_SECONDS
    assert pace.pause(pb.STANDING_UNSPECIFIED, away=False) == 1


def test_an_owner_out_of_reach_is_seldom_tried() -> None:
    """It does not count the silence of a worker that it has never heard, so it need not be told when the relay is
    away."""
    pace = VouchPace()
    assert [pace.pause(None, away=False) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert (pace.pause(None, away=True), pace.counts) == (60, False)
