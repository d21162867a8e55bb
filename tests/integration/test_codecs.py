"""Payloads pass through their codec once on each side, on every plane."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.wire import CODECS, IDENTITY, Codec
from psum.wire.errors import ProtocolError

PLANES = ["inline", "direct", "shm"]

#: Elements of keys whose shards travel in a message, just outside of one, and in several shards.
SIZES = (3, 20_000, 700_000)


class Halving:
    """Sends float32 as float16."""

    def most(self, size: int) -> int:
        return size // 2

    def encode(self, payload: memoryview) -> memoryview:
        return np.frombuffer(payload, np.float32).astype(np.float16).data.cast("B")

    def decode(self, data: memoryview, size: int) -> memoryview:
        if 2 * len(data) != size:
            raise ProtocolError(f"{len(data)} bytes for {size} bytes of float32")
        return np.frombuffer(data, np.float16).astype(np.float32).data.cast("B")


class Shifting:
    """Adds 1 to each byte, and counts how often it is asked. A payload that misses one end has no right value."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.encoded = self.decoded = 0

    def most(self, size: int) -> int:
        return size

    def encode(self, payload: memoryview) -> memoryview:
        with self._lock:
            self.encoded += 1
        return (np.frombuffer(payload, np.uint8) + np.uint8(1)).data

    def decode(self, data: memoryview, size: int) -> memoryview:
        with self._lock:
            self.decoded += 1
        return (np.frombuffer(data, np.uint8) - np.uint8(1)).data


def rounds(client: psum.Client) -> list[bytes]:
    """Two rounds of sums of small whole numbers, which float16 holds too, and a broadcast."""
    chance = np.random.default_rng(client.rank)
    store = client.store()
    values = [chance.integers(-99, 99, size).astype(np.float32) for size in SIZES]
    for _ in range(2):
        for future in [store.push_pull_async(i, value) for i, value in enumerate(values)]:
            future.result(20)
    store.broadcast("b", values[2])
    return [value.tobytes() for value in values]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("make", [Halving, Shifting])
def test_the_sums_are_those_without_a_codec(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, plane: str, make: Callable[[], Codec]
) -> None:
    """Both sides pass each contribution and each sum through the codec, whether it changes sizes or not."""
    expected = make_fleet(1).on_every_rank(2, rounds, plane=plane)
    monkeypatch.setitem(CODECS, IDENTITY, make())
    assert make_fleet(1).on_every_rank(2, rounds, plane=plane) == expected


@pytest.mark.parametrize("plane", PLANES)
def test_nothing_is_encoded_twice(make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, plane: str) -> None:
    """Each contribution is encoded and decoded once; each sum is encoded once, and decoded by each rank."""
    codec = Shifting()
    monkeypatch.setitem(CODECS, IDENTITY, codec)

    def one_round(client: psum.Client) -> None:
        client.store().push_pull("w", np.ones(700_000, np.float32))

    make_fleet(1).on_every_rank(3, one_round, plane=plane)
    shards = 2
    assert codec.encoded == shards * 3 + shards
    assert codec.decoded == shards * 3 + shards * 3


@pytest.mark.parametrize("plane", PLANES)
def test_a_wrong_encoding_is_refused(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, plane: str
) -> None:
    """The aggregator says what is wrong with a contribution that it cannot decode."""
    codec = Halving()
    monkeypatch.setattr(codec, "encode", lambda payload: payload[:-4])
    monkeypatch.setitem(CODECS, IDENTITY, codec)
    with (
        make_fleet(1).worker(0, 1, plane=plane) as client,
        pytest.raises(psum.FaultError, match="bytes for 400000 bytes of float32"),
    ):
        client.store().push_pull("w", np.ones(100_000, np.float32))


def test_a_sum_that_is_given_back_is_right(make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An aggregator that was started again gets it decoded, and sends it encoded."""
    monkeypatch.setitem(CODECS, IDENTITY, Shifting())
    fleet = make_fleet(1)
    with fleet.worker(0, 2) as first, fleet.worker(1, 2) as second:
        stores = [first.store(), second.store()]
        ones, twos = np.ones(50_000, np.float32), np.full(50_000, 2, np.float32)
        for future in [store.push_pull_async("w", value) for store, value in zip(stores, (ones, twos), strict=True)]:
            future.result(20)
        fleet.restart()
        for future in [store.push_pull_async("w", value) for store, value in zip(stores, (ones, twos), strict=True)]:
            future.result(20)
        assert np.all(ones == 6)
        assert np.all(twos == 6)


def test_a_key_chooses_its_codec_once_on_each_side(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The aggregator decodes and encodes with the codec of the job's key, which no other part chooses again."""
    expected = make_fleet(1).on_every_rank(2, rounds)
    codec = Shifting()
    for key in ("psum.client.core.key", "psum.aggregator.core.key"):
        monkeypatch.setattr(f"{key}.codec_of", lambda: codec)
    assert make_fleet(1).on_every_rank(2, rounds) == expected
    assert codec.decoded > 0
