"""Results are sent to a worker by urgency, small ones together."""

import numpy as np

from psum.aggregator.service.send_queue import SendQueue
from psum.aggregator.sums.results import Results
from psum.aggregator.sums.small_sums import SmallSums
from psum.v1 import aggregator_pb2 as pb
from psum.wire import BATCH_BYTES, ElementType, ShardRound, decode, to_rows


def small(queue: SendQueue, key: int, priority: int, *payloads: bytes, round: int = 0) -> None:
    """Results of consecutive keys that came together."""
    rows = [ShardRound(key + n, 0, round, priority, len(payload)) for n, payload in enumerate(payloads)]
    queue.put(Results(rows, [memoryview(payload) for payload in payloads], priority=priority))


def alone(queue: SendQueue, key: int, shard: int, priority: int, message: bytes) -> None:
    """A result that is a message by itself."""
    queue.put(Results((ShardRound(key, shard),), priority=priority, message=message))


def taken(queue: SendQueue) -> tuple[list[int], bytes]:
    message, payload = decode(pb.ExchangeResponse, queue.get())
    return list(message.result.shards.ids), bytes(payload)


def test_the_most_urgent_goes_first_and_equals_in_order() -> None:
    """Results leave by priority, not by arrival."""
    queue = SendQueue()
    for name, priority in (("a", -2), ("b", 0), ("c", -2), ("d", 1)):
        alone(queue, ord(name), 0, priority, name.encode())
    assert [queue.get() for _ in range(4)] == [b"d", b"b", b"a", b"c"]
    assert not queue


def test_control_messages_go_before_results() -> None:
    """A fault does not wait behind megabytes."""
    queue = SendQueue()
    alone(queue, 0, 1, 100, b"x" * 100)
    queue.put_control(pb.ExchangeResponse(fault=pb.Fault(text="stop")))
    assert decode(pb.ExchangeResponse, queue.get())[0].fault.text == "stop"


def test_a_sync_follows_all_that_was_there_before_it() -> None:
    """Results that it asks about go first; later ones may overtake it."""
    queue = SendQueue()
    alone(queue, 0, 2, -1000, b"before")
    queue.put_last(pb.ExchangeResponse(sync=pb.Sync(number=1)))
    alone(queue, 0, 3, 0, b"after")
    assert [queue.get(), queue.get()] == [b"after", b"before"]
    assert decode(pb.ExchangeResponse, queue.get())[0].sync.number == 1


def test_few_payloads_follow_a_message_to_another_host() -> None:
    """An urgent result waits there behind at most this much, unless a single payload is larger."""
    queue = SendQueue()
    queue.following_bytes = 100
    for key, size in enumerate((60, 40, 1, 200, 50)):
        row, payload = ShardRound(key, 0, 0, -key, 0, 0, size), memoryview(bytes(size))
        queue.put(Results((row,), [memoryview(b"")], priority=-key, following=(payload,)))
    sent = []
    while queue:
        queue.get()
        sent.append([len(payload) for payload in queue.following])
    assert sent == [[60, 40], [1], [200], [50]]


def test_small_results_share_a_message_in_order_of_urgency() -> None:
    """Small neighbours travel together, the most urgent first."""
    queue = SendQueue()
    small(queue, 1, -1, b"one")
    small(queue, 2, 0, b"two")
    small(queue, 3, -3, b"three")
    assert taken(queue) == ([2, 1, 3], b"twoonethree")


def test_a_large_result_between_small_ones_keeps_its_turn() -> None:
    """In batches too, a less urgent result never overtakes."""
    queue = SendQueue()
    small(queue, 1, 0, b"one")
    alone(queue, 0, 4, -1, b"large")
    small(queue, 2, -2, b"two")
    assert taken(queue) == ([1], b"one")
    assert queue.get() == b"large"
    assert taken(queue) == ([2], b"two")


def test_a_shared_message_stays_small() -> None:
    """No message of several results grows beyond the limit, so an urgent one does not wait long."""
    queue = SendQueue()
    piece = bytes(BATCH_BYTES // 3)
    for key in range(4):
        small(queue, key, 0, piece)
    assert taken(queue)[0] == [0, 1, 2]
    assert taken(queue)[0] == [3]


def test_results_without_bytes_do_not_make_one_endless_message() -> None:
    """The root of a broadcast gets results of no size; thousands of them are several messages."""
    queue = SendQueue()
    for name in range(3000):
        small(queue, name, 0, b"")
    sizes = []
    while queue:
        sizes.append(len(taken(queue)[0]))
    assert sum(sizes) == 3000
    assert max(sizes) <= 1024


def test_a_worker_that_does_not_read_has_one_result_of_each_shard_waiting() -> None:
    """A worker that does not read its results, or asks for one again and again, does not fill the memory."""
    queue = SendQueue()
    for round in range(1000):
        alone(queue, 7, 0, 0, b"large of round %d" % round)
        small(queue, 8, 0, b"s", round=round)
    assert len(queue) == 2
    assert queue.get() == b"large of round 999"
    message, _ = decode(pb.ExchangeResponse, queue.get())
    assert [entry.round for entry in to_rows(message.result.shards)] == [999]
    alone(queue, 7, 0, 0, b"large of round 1000")
    assert queue.get() == b"large of round 1000"
    assert not queue


def test_results_that_came_together_are_one_message_made_once() -> None:
    """Workers that are sent the same results share the message's bytes, which are made once."""
    both = Results([ShardRound(1, length=1), ShardRound(2, length=1)], [memoryview(b"a"), memoryview(b"b")], priority=0)
    queues = [SendQueue(), SendQueue()]
    for queue in queues:
        queue.put(both)
    messages = [queue.get() for queue in queues]
    assert messages[0] is messages[1]
    assert bytes(decode(pb.ExchangeResponse, messages[0])[1]) == b"ab"


def test_what_is_urgent_overtakes_results_that_came_together() -> None:
    """A late urgent result goes ahead of every message that is not being sent yet."""
    queue = SendQueue()
    small(queue, 1, -5, bytes(BATCH_BYTES // 2), bytes(BATCH_BYTES // 2))
    small(queue, 3, -7, b"less", b"urgent")
    small(queue, 9, 1, b"urgent")
    assert taken(queue) == ([9], b"urgent")
    assert taken(queue)[0] == [1, 2]
    assert taken(queue) == ([3, 4], b"lessurgent")


def test_a_result_replaces_its_own_among_several() -> None:
    """A result that is sent again replaces the earlier one, also among results that came together."""
    queue = SendQueue()
    small(queue, 1, 0, b"a", b"b", b"c")
    small(queue, 2, 0, b"B", round=1)
    small(queue, 3, 0, b"C", b"d", round=1)
    message, payload = decode(pb.ExchangeResponse, queue.get())
    assert [(row.id, row.round) for row in to_rows(message.result.shards)] == [(1, 0), (2, 1), (3, 1), (4, 1)]
    assert bytes(payload) == b"aBCd"
    assert not queue
    small(queue, 1, 0, b"e")
    assert taken(queue) == ([1], b"e")


def test_sums_that_were_made_together_share_a_message_with_others() -> None:
    """Each keeps its place, its bytes, and what is known of it."""
    queue = SendQueue()
    for key, values in ((1, [1.0, 2.0]), (9, [3.0])):
        addends = [memoryview(np.array(values, np.float32).tobytes())] * 2
        count = len(values)
        keys, rounds = range(key, key + count), [7] * count
        queue.put(
            SmallSums([ElementType.FLOAT32] * count, addends, keys, [5] * count, rounds, [-2] * count, [4] * count)
        )
    queue.put(Results([ShardRound(20, 1, 2, -3, 4, contributors=6)], [memoryview(b"last")], priority=-3))
    message, payload = decode(pb.ExchangeResponse, queue.get())
    assert to_rows(message.result.shards) == [
        *(ShardRound(key, 5, 7, -2, 4) for key in (1, 2, 9)),
        ShardRound(20, 1, 2, -3, 4, contributors=6),
    ]
    assert bytes(payload) == np.array([2, 4, 6], np.float32).tobytes() + b"last"
    assert not queue


def test_an_queue_is_crowded_until_some_of_it_was_taken() -> None:
    """A queue with too many unread short messages is crowded."""
    queue = SendQueue()
    while not queue.crowded:
        queue.put_control(pb.ExchangeResponse(taken=pb.Taken()))
        assert len(queue) < 10_000
    queue.get()
    assert not queue.crowded


def test_a_result_that_was_asked_for_twice_at_once_is_sent_once() -> None:
    """As when a message names a shard twice; the other results in it are sent too."""
    queue = SendQueue()
    rows = [ShardRound(key, 0, 4, 0, 1) for key in (1, 2, 1)]
    queue.put(Results(rows, [memoryview(value) for value in (b"a", b"b", b"c")], priority=0))
    assert taken(queue) == ([1, 2], b"cb")
    assert not queue
