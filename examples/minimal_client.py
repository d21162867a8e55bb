"""A small worker of psum's protocol, written from docs/protocol.md with only the generated stub.

It sums float32 with workers of any other kind, on any number of aggregators. It leaves out what docs/protocol.md allows
to leave out: planes other than inline, priorities, reconnecting, TLS, and several operations at a time.

    python examples/minimal_client.py RANK NUM_WORKERS ADDRESS...
"""

import hashlib
import queue
import struct
import sys
from collections.abc import Sequence
from typing import Any

import grpc

from psum.v1 import aggregator_pb2 as pb
from psum.v1 import aggregator_pb2_grpc as rpc

MESSAGE_BYTES = 80 << 20
ITEM_BYTES = 4


def key_id(store: int, operation: int, name: str) -> int:
    """Returns the id of a key, which must be the same on all ranks, whatever client they use."""
    return _hash(f"{store}/{operation}/{name}")


def turns(weights: Sequence[int]) -> list[int]:
    """Returns the order in which aggregators take shards."""
    total, balance, order = sum(weights), [0] * len(weights), []
    for _ in range(total):
        balance = [b + w for b, w in zip(balance, weights, strict=True)]
        order.append(balance.index(max(balance)))
        balance[order[-1]] -= total
    return order


def place(key: int, name: str, elements: int, partition: int, weights: Sequence[int]) -> list[tuple[int, int]]:
    """Elements and owner of each shard of a key in store 0."""
    order, size = turns(weights), elements * ITEM_BYTES
    unit = 16 if partition // ITEM_BYTES >= 16 else 1
    if size >= 1 << 20 and partition >= 64 << 10:
        unit = 4096 // ITEM_BYTES
    total, grain = len(order), min(max((256 << 10) // len(weights), 4 << 10), 64 << 10)
    units, most = -(-elements // unit), max(1, partition // ITEM_BYTES) // unit
    turn = key % total
    if name.isascii() and name.isdecimal():
        block, position = divmod(int(name), total)
        turn = sorted(range(total), key=lambda turn: _hash(f"0/{block}/{turn}"))[position]
    ends, owners = [0], []
    if size * min(weights) >= grain * total:
        owner = [(order[turn] + number) % len(weights) for number in range(len(weights))]
        share = 0
        for index in owner:
            begin, share = units * share // total, share + weights[index]
            length = units * share // total - begin
            count = -(-length // most)
            ends += [begin + length * (i + 1) // count for i in range(count)]
            owners += [index] * count
    else:
        count = max(min(size // grain, units), -(-units // most))
        ends += [units * (i + 1) // count for i in range(count)]
        owners = [order[(turn + i) % total] for i in range(count)]
    edges = [min(end * unit, elements) for end in ends]
    return [(stop - start, index) for start, stop, index in zip(edges, edges[1:], owners, strict=False)]


def first_owner(key: int, name: str, weights: Sequence[int]) -> int:
    """Who would own the first shard of a key, if it had any."""
    return place(key, name, 1, 1, weights)[0][1]


class Stream:
    """The stream to one aggregator."""

    def __init__(self, address: str, hello: pb.Hello) -> None:
        size = (("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", MESSAGE_BYTES))
        self.channel = grpc.insecure_channel(address, options=(*size, ("grpc.use_local_subchannel_pool", 1)))
        self.requests: queue.SimpleQueue[pb.ExchangeRequest | None] = queue.SimpleQueue()
        self.responses: Any = rpc.AggregatorServiceStub(self.channel).Exchange(iter(self.requests.get, None))
        self.send(hello=hello)
        self.receive("welcome")

    def send(self, payload: bytes = b"", **kind: Any) -> None:
        self.requests.put(pb.ExchangeRequest(payload=payload, **kind))

    def receive(self, wanted: str) -> pb.ExchangeResponse:
        """Returns the next message of a kind. Between operations it answers syncs: no sum is missing then."""
        for response in self.responses:
            match response.WhichOneof("kind"):
                case "fault":
                    raise RuntimeError(response.fault.text)
                case "sync" if wanted != "result":
                    self.send(synced=pb.Synced(number=response.sync.number))
                case kind if kind == wanted:
                    return response  # type: ignore[no-any-return]
        raise ConnectionError("the stream has ended")


class Worker:
    """One rank of a job."""

    def __init__(
        self, addresses: Sequence[str], rank: int, num_workers: int, job: str = "default", partition: int = 0
    ) -> None:
        partition = partition or max((2 << 20) // len(addresses), 512 << 10)
        self.rank, self.partition, self.rounds = rank, partition, dict[int, int]()
        self.weights = [1] * len(addresses)
        self.streams: list[Stream] = []
        hello = pb.Hello(protocol_version=1, job=job, rank=rank, num_workers=num_workers, partition_bytes=partition)
        hello.placement = 1
        hello.aggregators.extend(addresses)
        for index, address in enumerate(addresses):
            hello.aggregator_index = index
            self.streams.append(Stream(address, hello))

    def push_pull(self, name: str, values: Sequence[float]) -> list[float]:
        """Returns the sum of all ranks' values."""
        return self._exchange(pb.OPERATION_SUM, name, values, sends=True)

    def broadcast(self, name: str, values: Sequence[float]) -> list[float]:
        """Returns rank 0's values. Of the other ranks' values only the number counts."""
        received = self._exchange(pb.OPERATION_BROADCAST, name, values, sends=self.rank == 0)
        return list(values) if self.rank == 0 else received

    def close(self) -> None:
        """Leaves the job."""
        for stream in self.streams:
            stream.send(goodbye=pb.Goodbye())
        for stream in self.streams:
            stream.receive("farewell")
            stream.requests.put(None)
            stream.channel.close()

    def _exchange(
        self, operation: pb.Operation.ValueType, name: str, values: Sequence[float], *, sends: bool
    ) -> list[float]:
        key, data = key_id(0, operation, name), struct.pack(f"<{len(values)}f", *values)
        pieces, owner, begin = dict[int, bytes](), dict[int, Stream](), 0
        for index, (elements, aggregator) in enumerate(place(key, name, len(values), self.partition, self.weights)):
            pieces[index], owner[index] = data[begin : begin + elements * ITEM_BYTES], self.streams[aggregator]
            begin += elements * ITEM_BYTES
        if key not in self.rounds:
            # An empty key is declared too, to the aggregator of its first shard.
            for stream in {*owner.values()} or {self.streams[first_owner(key, name, self.weights)]}:
                declared = pb.Key(id=key, name=name, elements=len(values), shape=[len(values)], operation=operation)
                declared.type = pb.ELEMENT_TYPE_FLOAT32
                for index in (index for index, taker in owner.items() if taker is stream):
                    declared.shards.add(index=index, elements=len(pieces[index]) // ITEM_BYTES)
                stream.send(declare=pb.Declare(keys=[declared]))
        number = self.rounds[key] = self.rounds.get(key, -1) + 1
        for index, piece in pieces.items():
            shard = pb.ShardRounds(ids=[key], shards=[index], rounds=[number], lengths=[len(piece)] if sends else [])
            if sends:
                owner[index].send(push=pb.Push(shards=shard), payload=piece)
            else:
                owner[index].send(pull=pb.Pull(shards=shard))
        sums: dict[int, bytes] = {}
        for stream in owner.values():
            while any(taker is stream and index not in sums for index, taker in owner.items()):
                answer, begin = stream.receive("result"), 0
                for index, size in _rows(answer.result.shards):
                    sums[index] = answer.payload[begin : begin + size]
                    begin += size
        whole = b"".join(sums[index] for index in pieces)
        return [value for (value,) in struct.iter_unpack("<f", whole)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _rows(shards: pb.ShardRounds) -> list[tuple[int, int]]:
    """Returns number and bytes of each shard of a result. A column of one entry is for all, an empty one is zeros."""
    columns = (list(column) or [0] for column in (shards.shards, shards.lengths))
    return list(zip(*(column * len(shards.ids) if len(column) == 1 else column for column in columns), strict=True))


if __name__ == "__main__":
    worker = Worker(sys.argv[3:], int(sys.argv[1]), int(sys.argv[2]))
    print(worker.push_pull("w", [worker.rank + 1.0] * 4))
    worker.close()
