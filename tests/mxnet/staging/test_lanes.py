"""The order of a key's sums."""

from psum.mxnet.staging.lanes import Lane


class Scene:
    """A lane, and which sums ran late."""

    def __init__(self, count: int) -> None:
        self.lane = Lane()
        self.late: list[int] = []
        assert [self.lane.take() for _ in range(count)] == list(range(count))

    def is_due(self, place: int) -> bool:
        return self.lane.is_due(place, lambda: self.late.append(place))


def test_one_after_the_other() -> None:
    """A sum that is ready waits for the end of all earlier ones, in whatever order they become ready."""
    scene = Scene(3)
    assert not scene.is_due(2)
    assert scene.is_due(0)
    assert not scene.is_due(1)
    assert scene.late == []
    scene.lane.end(0)
    assert scene.late == [1]
    scene.lane.end(1)
    assert scene.late == [1, 2]


def test_nothing_waits_for_a_sum_that_is_over() -> None:
    """Sums that will never run are skipped, also if others are before them."""
    scene = Scene(4)
    scene.lane.end(2)
    assert not scene.is_due(3)
    scene.lane.end(0)
    assert scene.late == []
    scene.lane.end(1)
    assert scene.late == [3]


def test_who_comes_at_its_turn_need_not_wait() -> None:
    """A sum that becomes ready after the end of all earlier ones runs at once."""
    scene = Scene(2)
    scene.lane.end(0)
    assert scene.is_due(1)
    scene.lane.end(1)
    assert scene.lane.take() == 2
    assert scene.is_due(2)
    assert scene.late == []
