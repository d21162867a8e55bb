"""What waits for a worker goes out by urgency, small results together."""

from psum.aggregator.service.send_queue import SendQueue
from psum.aggregator.sums.results import Results
from psum.v1 import aggregator_pb2 as pb
from psum.wire import BATCH_BYTES, ShardRound, decode, to_rows


def small(outbox: SendQueue, key: int, priority: int, *payloads: bytes, round: int = 0) -> None:
    """Results of consecutive keys that came together."""
    rows = [ShardRound(key + n, 0, round, priority, len(payload)) for n, payload in enumerate(payloads)]
    outbox.put(Results(rows, [memoryview(payload) for payload in payloads], priority=priority))


def alone(outbox: SendQueue, key: int, shard: int, priority: int, message: bytes) -> None:
    """A result that is a message by itself."""
    outbox.put(Results((ShardRound(key, shard),), priority=priority, message=message))


def taken(outbox: SendQueue) -> tuple[list[int], bytes]:
    message, payload = decode(pb.ExchangeResponse, outbox.take())
    return list(message.result.shards.ids), bytes(payload)


def test_the_most_urgent_goes_first_and_equals_in_order() -> None:
    """Results leave by priority, not by arrival."""
    outbox = SendQueue()
    for name, priority in (("a", -2), ("b", 0), ("c", -2), ("d", 1)):
        alone(outbox, ord(name), 0, priority, name.encode())
    assert [outbox.take() for _ in range(4)] == [b"d", b"b", b"a", b"c"]
    assert not outbox


def test_control_messages_go_before_results() -> None:
    """A fault does not wait behind megabytes."""
    outbox = SendQueue()
    alone(outbox, 0, 1, 100, b"x" * 100)
    outbox.put_control(pb.ExchangeResponse(fault=pb.Fault(text="stop")))
    assert decode(pb.ExchangeResponse, outbox.take())[0].fault.text == "stop"


def test_a_sync_follows_all_that_was_there_before_it() -> None:
    """What it asks about must have been sent; what comes later may overtake it."""
    outbox = SendQueue()
    alone(outbox, 0, 2, -1000, b"before")
    outbox.put_last(pb.ExchangeResponse(sync=pb.Sync(number=1)))
    alone(outbox, 0, 3, 0, b"after")
    assert [outbox.take(), outbox.take()] == [b"after", b"before"]
    assert decode(pb.ExchangeResponse, outbox.take())[0].sync.number == 1


def test_small_results_share_a_message_in_order_of_urgency() -> None:
    """What is small and next to each other travels together, most urgent first."""
    outbox = SendQueue()
    small(outbox, 1, -1, b"one")
    small(outbox, 2, 0, b"two")
    small(outbox, 3, -3, b"three")
    assert taken(outbox) == ([2, 1, 3], b"twoonethree")


def test_a_large_result_between_small_ones_keeps_its_turn() -> None:
    """Batching never lets the less urgent overtake."""
    outbox = SendQueue()
    small(outbox, 1, 0, b"one")
    alone(outbox, 0, 4, -1, b"large")
    small(outbox, 2, -2, b"two")
    assert taken(outbox) == ([1], b"one")
    assert outbox.take() == b"large"
    assert taken(outbox) == ([2], b"two")


def test_a_shared_message_stays_small() -> None:
    """No message of several results grows beyond the limit, so an urgent one waits for little."""
    outbox = SendQueue()
    piece = bytes(BATCH_BYTES // 3)
    for key in range(4):
        small(outbox, key, 0, piece)
    assert taken(outbox)[0] == [0, 1, 2]
    assert taken(outbox)[0] == [3]


def test_results_without_bytes_do_not_make_one_endless_message() -> None:
    """The root of a broadcast gets results of no size; thousands of them are several messages."""
    outbox = SendQueue()
    for name in range(3000):
        small(outbox, name, 0, b"")
    sizes = []
    while outbox:
        sizes.append(len(taken(outbox)[0]))
    assert sum(sizes) == 3000
    assert max(sizes) <= 1024


def test_a_worker_that_does_not_read_has_one_result_of_each_shard_waiting() -> None:
    """A worker that goes on without reading its results, or asks for one again and again, does not fill the memory."""
    outbox = SendQueue()
    for round in range(1000):
        alone(outbox, 7, 0, 0, b"large of round %d" % round)
        small(outbox, 8, 0, b"s", round=round)
    assert len(outbox) == 2
    assert outbox.take() == b"large of round 999"
    message, _ = decode(pb.ExchangeResponse, outbox.take())
    assert [entry.round for entry in to_rows(message.result.shards)] == [999]
    alone(outbox, 7, 0, 0, b"large of round 1000")
    assert outbox.take() == b"large of round 1000"
    assert not outbox


def test_results_that_came_together_are_one_message_made_once() -> None:
    """Workers that are sent the same share its bytes, which are put together once."""
    both = Results([ShardRound(1, length=1), ShardRound(2, length=1)], [memoryview(b"a"), memoryview(b"b")], priority=0)
    boxes = [SendQueue(), SendQueue()]
    for outbox in boxes:
        outbox.put(both)
    messages = [outbox.take() for outbox in boxes]
    assert messages[0] is messages[1]
    assert bytes(decode(pb.ExchangeResponse, messages[0])[1]) == b"ab"


def test_what_is_urgent_overtakes_results_that_came_together() -> None:
    """A late urgent result goes ahead of every message that is not being sent yet."""
    outbox = SendQueue()
    small(outbox, 1, -5, bytes(BATCH_BYTES // 2), bytes(BATCH_BYTES // 2))
    small(outbox, 3, -7, b"less", b"urgent")
    small(outbox, 9, 1, b"urgent")
    assert taken(outbox) == ([9], b"urgent")
    assert taken(outbox)[0] == [1, 2]
    assert taken(outbox) == ([3, 4], b"lessurgent")


def test_a_result_replaces_its_own_among_several() -> None:
    """Of results that came together, one that is sent anew is replaced, and the others stay."""
    outbox = SendQueue()
    small(outbox, 1, 0, b"a", b"b", b"c")
    small(outbox, 2, 0, b"B", round=1)
    small(outbox, 3, 0, b"C", b"d", round=1)
    message, payload = decode(pb.ExchangeResponse, outbox.take())
    assert [(row.id, row.round) for row in to_rows(message.result.shards)] == [(1, 0), (2, 1), (3, 1), (4, 1)]
    assert bytes(payload) == b"aBCd"
    assert not outbox
    small(outbox, 1, 0, b"e")
    assert taken(outbox) == ([1], b"e")


def test_an_outbox_is_crowded_until_some_of_it_was_taken() -> None:
    """Short messages that nobody reads are a reason not to listen."""
    outbox = SendQueue()
    while not outbox.crowded:
        outbox.put_control(pb.ExchangeResponse(taken=pb.Taken()))
        assert len(outbox) < 10_000
    outbox.take()
    assert not outbox.crowded


def test_a_result_that_was_asked_for_twice_at_once_is_sent_once() -> None:
    """As by a message that names a shard twice; what else came with it is sent too."""
    outbox = SendQueue()
    rows = [ShardRound(key, 0, 4, 0, 1) for key in (1, 2, 1)]
    outbox.put(Results(rows, [memoryview(value) for value in (b"a", b"b", b"c")], priority=0))
    assert taken(outbox) == ([1, 2], b"cb")
    assert not outbox
