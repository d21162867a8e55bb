"""What ranks must agree on, in canonical form: equal values mean the same."""

import math
from collections.abc import Sequence

from psum.v1 import aggregator_pb2 as pb
from psum.wire import PLACEMENT_BY_ROLES, PLACEMENT_BY_WEIGHTS, canonical


def weights(hello: pb.Hello) -> tuple[int, ...] | str:
    """The weights of the aggregators, reduced because only their ratio counts; empty if all are equal.

    'auto' if the ranks are going to agree on them, by the aggregators' roles.
    """
    if hello.placement == PLACEMENT_BY_ROLES:
        return "auto"
    divisor = math.gcd(*hello.weights)
    reduced = tuple(weight // divisor for weight in hello.weights) if divisor else tuple(hello.weights)
    return () if set(reduced) == {1} else reduced


def placement(hello: pb.Hello) -> int:
    """The rule of placement, whatever the weights."""
    return PLACEMENT_BY_WEIGHTS if hello.placement == PLACEMENT_BY_ROLES else hello.placement


def aggregators(hello: pb.Hello) -> tuple[str, ...]:
    """The addresses of the fleet."""
    return tuple(map(canonical, hello.aggregators))


def elastic(hello: pb.Hello) -> tuple[int, int] | None:
    """The least and the most ranks of an elastic job; None if it is not elastic."""
    return (hello.elastic.min, hello.elastic.max) if hello.HasField("elastic") else None


def next_relays(hello: pb.Hello) -> list[tuple[str, int]]:
    """The relays that a group's relay forwards to, as address and group size."""
    return [(canonical(relay.address), relay.group_size) for relay in hello.next_relays]


def same_shape(one: pb.Key, other: pb.Key) -> bool:
    """Whether the shapes of a key agree. A rank that declares no shape, as for a scalar, agrees with any."""
    return not one.shape or not other.shape or one.shape == other.shape


def shards(key: pb.Key) -> Sequence[tuple[int, int, int]]:
    """The shards of a key as (index, elements, owner), sorted by index. Only relays are told of owners."""
    return sorted((shard.index, shard.elements, shard.owner) for shard in key.shards)
