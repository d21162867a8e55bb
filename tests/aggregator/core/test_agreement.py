"""Values that mean the same agree, however a worker writes them; other values are a disagreement."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psum.aggregator.core import agreement
from psum.aggregator.core.key import Key
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.aggregator.core.roster import Roster
from psum.client.core.placement import Placement
from psum.v1 import aggregator_pb2 as pb
from psum.wire import canonical
from psum.wire.errors import DisagreementError, FaultError, InvalidError

FLEET = ["host-0:50051", "host-1:50051"]


def hello(rank: int, **given: Any) -> pb.Hello:
    message = pb.Hello(protocol_version=1, job="j", rank=rank, num_workers=2, partition_bytes=1024, aggregators=FLEET)
    for name, value in given.items():
        if isinstance(value, list):
            message.ClearField(name)  # type: ignore[arg-type]
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def refusal(one: dict[str, Any], other: dict[str, Any]) -> FaultError | None:
    """The outcome when two workers join with these hellos."""
    registry = Registry(Limits())
    assert registry.join(hello(0, **one), "peer", 0.0)[2] is None
    return registry.join(hello(1, **other), "peer", 0.0)[2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"weights": []}, {"weights": [1, 1]}),
        ({"weights": [3, 3]}, {"weights": []}),
        ({"weights": [2, 4]}, {"weights": [1, 2]}),
        ({"aggregators": ["host:1"], "weights": [1]}, {"aggregators": ["host:1"]}),
        ({"aggregators": ["host:1"], "weights": [7]}, {"aggregators": ["host:1"], "weights": [2]}),
        ({"aggregators": ["Host:443", "[0:0::1]:7"]}, {"aggregators": ["host:00443", "[::1]:7"]}),
        ({"aggregators": ["unix:///run/psum"]}, {"aggregators": ["unix:/run/psum"]}),
        ({"planes": []}, {"planes": [pb.PLANE_SHM, pb.PLANE_DIRECT, pb.PLANE_INLINE]}),
        ({"worker": ""}, {"worker": "host pid 7"}),
    ],
)
def test_what_means_the_same_is_no_disagreement(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The order in which the workers join does not matter."""
    assert refusal(one, other) is None
    assert refusal(other, one) is None


@pytest.mark.parametrize(
    ("one", "other", "text"),
    [
        ({"weights": []}, {"weights": [2, 1]}, r"rank 0 has \[\], rank 1 has \[2, 1\]"),
        ({"weights": [1, 2]}, {"weights": [2, 1]}, "the weights of the aggregators"),
        ({}, {"aggregators": FLEET[::-1]}, "the list of aggregators"),
        ({}, {"aggregators": ["host-0:50051", "host-1:50052"]}, "the list of aggregators"),
        ({"aggregators": ["/run/A:1"]}, {"aggregators": ["/run/B:1"]}, "the list of aggregators"),
        ({"aggregators": ["unix:/run/A"]}, {"aggregators": ["unix:/run/a"]}, "the list of aggregators"),
        ({}, {"aggregator_index": 1}, "lead to one and the same aggregator"),
    ],
)
def test_what_does_not_is_one_and_is_shown_as_it_was_said(
    one: dict[str, Any], other: dict[str, Any], text: str
) -> None:
    """Otherwise ranks would send their shards to different aggregators."""
    with pytest.raises(DisagreementError, match=text):
        raise refusal(one, other) or AssertionError("no refusal")


def test_workers_that_place_shards_by_another_rule_are_refused() -> None:
    """Otherwise a small key of theirs could go to another aggregator, and wait there until the round times out."""
    with pytest.raises(
        DisagreementError, match=r"placement of shards \(the version of psum\): rank 0 has 1, rank 1 has 0"
    ):
        raise refusal({"placement": 1}, {}) or AssertionError("no refusal")


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [0, 0], [0, 1]])
def test_weights_that_cannot_be_meant_are_refused(weights: list[int]) -> None:
    """A hello has one weight for each aggregator, and no weight is zero."""
    with pytest.raises(InvalidError, match="expected none, or one for each, from 1"):
        raise refusal({}, {"weights": weights}) or AssertionError("no refusal")


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_weights_are_the_same_where_they_place_alike(one: list[int], other: list[int]) -> None:
    """Two lists agree exactly if they place all shards of all keys on the same aggregators."""

    def owners(weights: list[int]) -> list[list[int]]:
        placement = Placement(1, weights)
        return [[s.aggregator for s in placement.shards(placement.turn(0, "w", key), 60, 1)] for key in range(60)]

    alike = agreement.weights(pb.Hello(weights=one)) == agreement.weights(pb.Hello(weights=other))
    if len(one) == len(other):
        assert alike == (owners(one) == owners(other))
    assert agreement.weights(pb.Hello(weights=[3 * weight for weight in one])) == agreement.weights(
        pb.Hello(weights=one)
    )


@pytest.mark.parametrize("address", ["host:1", "[::1]:50051", "10.0.0.5:1", "unix:/run/psum.sock", "nonsense", ""])
def test_the_usual_form_of_an_address_stays(address: str) -> None:
    """So does an address that cannot be parsed."""
    assert canonical(address) == address


def key(shards: list[tuple[int, int]], **given: Any) -> pb.Key:
    made = pb.Key(id=1, name="w", elements=6, type=pb.ELEMENT_TYPE_FLOAT32, operation=pb.OPERATION_SUM, **given)
    for index, elements in shards:
        made.shards.add(index=index, elements=elements)
    return made


SHARDS = [(0, 2), (2, 2)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (key(SHARDS, shape=[2, 3]), key(SHARDS[::-1], shape=[2, 3])),
        (key(SHARDS, shape=[2, 3]), key(SHARDS)),
        (key(SHARDS), key(SHARDS, shape=[6])),
    ],
)
def test_keys_that_mean_the_same_agree(one: pb.Key, other: pb.Key) -> None:
    """Another order of the shards, and a shape that a worker omits, are no disagreement."""
    assert Key(one, 0, Roster(2)).disagreement(other, 1) is None


@pytest.mark.parametrize(
    "other", [key(SHARDS, shape=[3, 2]), key([(0, 2), (2, 1)], shape=[2, 3]), key([(0, 2), (1, 2)], shape=[2, 3])]
)
def test_keys_that_do_not_disagree(other: pb.Key) -> None:
    """Another shape, or other shards, are a disagreement."""
    assert isinstance(Key(key(SHARDS, shape=[2, 3]), 0, Roster(2)).disagreement(other, 1), DisagreementError)


def test_a_shape_that_is_said_later_counts_from_then_on() -> None:
    """The first rank omits the shape, the second declares it, and the third declares another one."""
    agreed = Key(key(SHARDS), 0, Roster(3))
    assert agreed.disagreement(key(SHARDS, shape=[2, 3]), 1) is None
    with pytest.raises(DisagreementError, match=r"rank 1 declared .* \(2, 3\), rank 2 declared .* \(3, 2\)"):
        raise agreed.disagreement(key(SHARDS, shape=[3, 2]), 2) or AssertionError("no disagreement")


def test_workers_without_an_incarnation_are_not_taken_for_one() -> None:
    """The second of two workers with one rank and without incarnations is refused."""
    registry = Registry(Limits())
    assert registry.join(hello(0), "peer", 0.0)[2] is None
    with pytest.raises(FaultError, match="rank 0 of job 'j' is taken"):
        raise registry.join(hello(0), "other peer", 1.0)[2] or AssertionError("no refusal")
