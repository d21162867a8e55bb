"""Which operations are recorded, and to which step they belong."""

import pytest

from psum.client import ElementType, Operation
from psum.client.core.counters import OperationCounters
from psum.client.core.key import Key
from psum.client.core.placement import Placement
from psum.client.core.recorder import OperationRecord, Recorder

ONE_SHARD = 16


def key(name: str, operation: Operation = Operation.SUM, shards: int = 1) -> Key:
    """A key with this many shards."""
    placement = Placement(ONE_SHARD, (1,))
    return Key(0, name, (shards * ONE_SHARD,), ElementType.UINT8, operation, placement, OperationCounters())


def step_of(record: OperationRecord | None) -> int | None:
    """The step that an operation belongs to, None if it is not recorded."""
    return None if record is None else record.step


def end(recorder: Recorder, record: OperationRecord | None, now: float) -> None:
    """Ends an operation."""
    recorder.completed(record, now)
    if record is not None:
        recorder.ended(record)


def test_where_every_key_is_summed_once_a_step_its_round_is_the_step() -> None:
    """The steps from the first to the last one are recorded, both included."""
    recorder = Recorder(2, 3)
    keys = [key("a"), key("b")]
    steps = [[step_of(recorder.reserved(k, round, 0.0)) for k in keys] for round in range(5)]
    assert steps == [[None, None], [None, None], [2, 2], [3, 3], [None, None]]
    assert [(o.key, o.round) for o in recorder.operations] == [("a", 2), ("b", 2), ("a", 3), ("b", 3)]


def test_a_key_that_is_used_now_and_then_belongs_to_the_step_it_is_used_in() -> None:
    """The step of its own round would stretch over half of the training."""
    recorder = Recorder(0, 100)
    often, seldom = key("gradient"), key("loss")
    for round in range(50):
        recorder.reserved(often, round, 0.0)
    assert step_of(recorder.reserved(seldom, 0, 0.0)) == 49
    assert step_of(recorder.reserved(often, 50, 0.0)) == 50
    assert step_of(recorder.reserved(seldom, 1, 0.0)) == 50


def test_a_second_training_goes_on_counting() -> None:
    """The second training has new keys, whose rounds begin at 0 again."""
    recorder = Recorder(0, 100)
    for training in range(2):
        keys = [key(f"{name} of {training}") for name in "ab"]
        for round in range(3):
            for one in keys:
                recorder.reserved(one, round, 0.0)
    # The first step of the second training cannot be told from the rest of the last one of the first.
    assert [o.step for o in recorder.operations] == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4]


def test_a_key_that_is_used_twice_a_step_makes_two_steps_of_it() -> None:
    """Keys that are used rarely belong to the step in which they are used."""
    recorder = Recorder(0, 100)
    twice, once = key("twice"), key("once")
    for round in range(3):
        recorder.reserved(twice, 2 * round, 0.0)
        recorder.reserved(once, round, 0.0)
        recorder.reserved(twice, 2 * round + 1, 0.0)
    assert [o.step for o in recorder.operations] == [0, 0, 1, 2, 2, 3, 4, 4, 5]


def test_broadcasts_make_no_step() -> None:
    """Broadcasts are recorded in the step in which they happen; before the first step they are not recorded."""
    recorder = Recorder(0, 1)
    weights = key("w", Operation.BROADCAST)
    assert recorder.reserved(weights, 0, 0.0) is None
    gradient = key("w")
    assert step_of(recorder.reserved(gradient, 0, 0.0)) == 0
    for round in range(1, 7):
        assert step_of(recorder.reserved(weights, round, 0.0)) == 0
    assert step_of(recorder.reserved(gradient, 1, 0.0)) == 1
    assert not recorder.over


def test_it_is_over_when_a_later_step_has_begun_and_all_is_answered() -> None:
    """A recording does not wait for an operation that failed."""
    recorder = Recorder(0, 0)
    records = [recorder.reserved(key(name), 0, 0.0) for name in "ab"]
    end(recorder, records[0], 1.0)
    assert not recorder.over
    later = key("a")
    recorder.reserved(later, 1, 2.0)
    assert not recorder.over
    failed = records[1]
    assert failed is not None
    recorder.ended(failed)
    assert recorder.over
    assert recorder.steps() == []


def test_a_step_is_whole_when_all_its_operations_succeeded() -> None:
    """Only complete steps are counted."""
    recorder = Recorder(0, 5)
    for round in range(3):
        for name in "ab":
            record = recorder.reserved(key(name), round, 0.0)
            if (name, round) != ("b", 2):
                end(recorder, record, 1.0)
    assert recorder.steps() == [0, 1]


def test_the_end_of_the_step_before_is_known() -> None:
    """Otherwise the first step would begin with its first call, and hide the computation before it."""
    recorder = Recorder(2, 2)
    sums = key("a")
    for round in range(4):
        record = recorder.reserved(sums, round, float(round))
        end(recorder, record, round + 0.5)
    assert recorder.before == 1.5


@pytest.mark.parametrize(("room", "whole"), [(5, [0]), (6, [0, 1]), (8, [0, 1]), (2, [])])
def test_what_is_recorded_is_bounded(room: int, whole: list[int]) -> None:
    """A recording that reaches its limit ends with the last complete step."""
    recorder = Recorder(0, 9, max_shards=room)
    for round in range(4):
        for name, shards in (("a", 1), ("b", 2)):
            end(recorder, recorder.reserved(key(name, shards=shards), round, 0.0), 1.0)
    assert recorder.full
    assert recorder.over
    assert recorder.steps() == whole
    assert sum(max(1, len(o.shards)) for o in recorder.operations) <= room


def test_keys_without_shards_need_room_too() -> None:
    """Empty tensors may be many."""
    recorder = Recorder(0, 9, max_shards=3)
    assert [recorder.reserved(key("e", shards=0), round, 0.0) is None for round in range(4)] == [False] * 3 + [True]
