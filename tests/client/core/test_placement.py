"""Placement is the same everywhere, covers every byte, and spreads evenly."""

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psum.cli.bench import workloads
from psum.client.core.placement import Placement, _hash, key_id
from psum.v1 import aggregator_pb2 as pb

weights = st.lists(st.integers(1, 5), min_size=1, max_size=5)

#: Fleets for which the bounds are checked.
FLEETS: Final = (*range(2, 17), 24, 32, 48, 64)

#: Tensors of float32, by their number of elements.
MODELS: Final = {name: workloads.sizes(name) for name in ("resnet50", "vgg16", "transformer", "big", "small")}


def loads(sizes: Sequence[int], weights: Sequence[int]) -> list[int]:
    """The bytes of each aggregator, where a Trainer has tensors of float32 with so many elements."""
    placement = Placement(2 << 20, weights)
    owned = [0] * len(weights)
    for number, elements in enumerate(sizes):
        name = str(number)
        turn = placement.turn(0, name, key_id(0, name, pb.OPERATION_SUM))
        for shard in placement.shards(turn, elements, 4):
            owned[shard.aggregator] += shard.size
    return owned


def unevenness(owned: Sequence[int], weights: Sequence[int]) -> float:
    """How much more than its share the most loaded aggregator has: 1.0 is even."""
    return max(o / w for o, w in zip(owned, weights, strict=True)) * sum(weights) / sum(owned)


@given(st.integers(0, 10**6), st.integers(0, 5000), st.sampled_from([1, 2, 4, 8]), st.integers(16, 999), weights)
def test_shards_cover_a_key_without_gap_or_overlap(
    number: int, elements: int, itemsize: int, partition_bytes: int, weights: list[int]
) -> None:
    """Shards are contiguous, whole elements, at most a partition long, and together the key."""
    placement = Placement(partition_bytes, weights)
    turn = placement.turn(0, str(number), number)
    shards = placement.shards(turn, elements, itemsize)
    assert [s.index for s in shards] == list(range(len(shards)))
    assert [s.start for s in shards] == [0, *(s.stop for s in shards)][: len(shards)]
    assert (shards[-1].stop if shards else 0) == elements * itemsize
    assert all(0 < s.size <= partition_bytes and s.size % itemsize == 0 for s in shards)
    assert not shards or shards[0].aggregator == placement.first(turn)


@given(st.lists(st.integers(0, 200_000), max_size=30), st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_order_of_declaration_is_of_no_account(sizes: list[int], aggregators: int, random: Random) -> None:
    """A rank that meets the keys in another order has the same shards, with the same owners."""
    one, other = Placement(1 << 18, [1] * aggregators), Placement(1 << 18, [1] * aggregators)
    keys = [(name, elements) for i, elements in enumerate(sizes) for name in (str(i), f"layer{i}.weight")]

    def shards(placement: Placement, name: str, elements: int) -> object:
        turn = placement.turn(1, name, key_id(1, name, pb.OPERATION_SUM))
        return placement.shards(turn, elements, 4)

    first = {key: shards(one, *key) for key in keys}
    random.shuffle(keys)
    assert {key: shards(other, *key) for key in keys} == first


@given(st.integers(1 << 17, 1 << 23), st.sampled_from([2, 4, 8]), st.integers(16, 512), weights)
def test_shards_of_large_keys_begin_at_pages(elements: int, itemsize: int, pages: int, weights: list[int]) -> None:
    """The sums of all shards can then be mapped one after the other."""
    shards = Placement(pages * 4096, weights).shards(0, elements, itemsize)
    assert elements * itemsize < 1 << 20 or all(shard.start % 4096 == 0 for shard in shards)


@pytest.mark.parametrize("model", ["resnet50", "vgg16", "transformer", "big"])
def test_known_models_are_even(model: str) -> None:
    """No aggregator has more than 1.02 times the mean of a known model, in any fleet of up to 64."""
    uneven = {count: unevenness(loads(MODELS[model], [1] * count), [1] * count) for count in FLEETS}
    assert {count: value for count, value in uneven.items() if value > 1.02} == {}


def test_many_small_keys_are_as_even_as_they_can_be() -> None:
    """No aggregator has more keys than the others but for one: keys of 4 KiB are not cut."""
    for count in FLEETS:
        assert max(loads(MODELS["small"], [1] * count)) == -(-256 // count) * 4096


@pytest.mark.parametrize("model", ["resnet50", "vgg16", "transformer", "big"])
@pytest.mark.parametrize("weights", [[2, 1], [3, 1, 1], [1, 2, 3, 4], [14, 3, 3], [6, 6, 3, 3], [101, 100]], ids=str)
def test_weights_are_honoured_as_exactly(model: str, weights: list[int]) -> None:
    """Each aggregator has its share by weight, within 2 %."""
    assert unevenness(loads(MODELS[model], weights), weights) <= 1.02


@pytest.mark.parametrize("model", ["resnet50", "vgg16", "transformer", "big"])
def test_the_first_layers_are_even_too(model: str) -> None:
    """The first tenth of the bytes, which the next step needs first, is within 1.25 of the mean by itself."""
    sizes = MODELS[model]
    before = itertools.accumulate(sizes, initial=0)
    urgent = [size for size, begin in zip(sizes, before, strict=False) if begin < sum(sizes) / 10]
    assert {n: v for n in FLEETS if (v := unevenness(loads(urgent, [1] * n), [1] * n)) > 1.25} == {}


@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=40), st.lists(st.integers(1, 9), min_size=1, max_size=16))
def test_no_model_is_far_from_even(sizes: list[int], weights: list[int]) -> None:
    """Of a key that every aggregator owns a range of, none has too much; of any other, two shards too many at most."""
    placement, shares = Placement(2 << 20, weights), [weight / sum(weights) for weight in weights]
    for number, elements in enumerate(sizes):
        shards = placement.shards(placement.turn(0, str(number), 0), elements, 4)
        owned = [sum(s.size for s in shards if s.aggregator == owner) for owner in range(len(weights))]
        everywhere = elements * 4 * min(shares) >= 64 << 10
        # Shards begin at multiples of 64 bytes, those of keys of 1 MiB and more at pages.
        rounding = 2 * (4096 if elements * 4 >= 1 << 20 else 64)
        slack = rounding if everywhere else 2 * max(s.size for s in shards)
        for bytes_owned, share in zip(owned, shares, strict=True):
            assert bytes_owned <= elements * 4 * share + slack


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    st.lists(st.integers(0, 1 << 20), min_size=1, max_size=9),
)
def test_an_aggregator_of_weight_0_is_as_if_it_were_not_there(weights: list[int], sizes: list[int]) -> None:
    """Everything goes to the others, where it would go without it."""
    others = [index for index, weight in enumerate(weights) if weight]
    placement, without = Placement(2 << 20, weights), Placement(2 << 20, [weights[index] for index in others])
    for number, elements in enumerate(sizes):
        turn = placement.turn(0, str(number), number)
        assert turn == without.turn(0, str(number), number)
        assert placement.first(turn) == others[without.first(turn)]
        ours, theirs = placement.shards(turn, elements, 4), without.shards(turn, elements, 4)
        assert [(s.start, s.stop, s.aggregator) for s in ours] == [
            (s.start, s.stop, others[s.aggregator]) for s in theirs
        ]


def random_model(random: Random) -> list[int]:
    """The tensors of a random network: weights of 20 to 200 layers, most with a bias, some with a scale."""
    sizes = []
    for _ in range(random.randint(20, 200)):
        inputs, outputs = (random.choice((32, 64, 128, 192, 256, 384, 512, 768, 1024, 2048)) for _ in range(2))
        sizes.append(inputs * outputs * random.choice((1, 1, 9)))
        sizes += [outputs] * random.choice((0, 1, 1, 1, 2))
    return sizes


@pytest.mark.parametrize("weighted", [False, True])
def test_random_models_are_even_too(weighted: bool) -> None:
    """No aggregator has more than 1.05 times its share, and in hardly any model more than 1.02 times."""
    random, uneven = Random(7), []
    for count in FLEETS * 5:
        weights = [random.randint(1, 4 if weighted else 1) for _ in range(count)]
        uneven.append(unevenness(loads(random_model(random), weights), weights))
    assert max(uneven) <= 1.05
    assert sum(value > 1.02 for value in uneven) <= len(uneven) / 20


def test_small_keys_are_not_cut() -> None:
    """What many small keys cost is the same for any number of aggregators: one shard each."""
    for aggregators in FLEETS:
        placement = Placement(2 << 20, [1] * aggregators)
        assert all(len(placement.shards(0, elements, 4)) == 1 for elements in (1, 512, 1024))
        assert all(len(placement.shards(0, elements, 4)) == 1 for elements in {*workloads.sizes("many")})


def test_consecutive_numbers_go_to_different_aggregators() -> None:
    """A Trainer's small keys are even, also where their sizes have a pattern."""
    for aggregators in FLEETS:
        owned = loads([1024] * aggregators * 4, [1] * aggregators)
        assert set(owned) == {4 * 4096}
    # Weights and biases in turn, on two aggregators: by number alone one of them would have all the weights.
    assert unevenness(loads([1000, 10] * 100, [1, 1]), [1, 1]) < 1.25


def test_a_heavier_aggregator_does_not_take_its_turns_in_a_row() -> None:
    """Weights are interleaved, so that small keys that follow each other are spread too."""
    placement = Placement(16, [2, 1, 1])
    assert [placement.first(turn) for turn in range(4)] == [0, 1, 2, 0]


def moved(sizes: Sequence[int], before: Sequence[int], after: Sequence[int]) -> float:
    """The part of the bytes that another aggregator owns when the weights, or the number of aggregators, change."""
    kept = 0
    old, new = Placement(2 << 20, before), Placement(2 << 20, after)
    for number, elements in enumerate(sizes):
        name = str(number)
        one, other = (placement.shards(placement.turn(0, name, 0), elements, 4) for placement in (old, new))
        for shard in one:
            for place in other:
                if shard.aggregator == place.aggregator:
                    kept += max(0, min(shard.stop, place.stop) - max(shard.start, place.start))
    return 1 - kept / (4 * sum(sizes))


def test_most_bytes_have_another_owner_when_an_aggregator_is_added() -> None:
    """At least those that the new one owns move. Ranges shift too, so most bytes do; docs/architecture.md says so."""
    shares = {n: moved(MODELS["resnet50"], [1] * n, [1] * (n + 1)) for n in (1, 2, 3, 4, 8, 16)}
    assert {n: round(100 * share) for n, share in shares.items()} == {1: 50, 2: 68, 3: 76, 4: 81, 8: 89, 16: 98}
    assert all(share > 0.99 / (n + 1) for n, share in shares.items())
    assert moved(MODELS["resnet50"], [1, 2, 1], [2, 4, 2]) == 0


def test_named_keys_spread_over_the_aggregators() -> None:
    """Keys with other names begin where a hash says."""
    placement = Placement(1 << 20, [1, 1, 1])
    names = [f"layer{number}" for number in range(300)]
    owners = Counter(placement.first(placement.turn(0, n, key_id(0, n, pb.OPERATION_SUM))) for n in names)
    assert all(70 <= owners[a] <= 130 for a in range(3))


def test_ids_tell_stores_keys_and_operations_apart() -> None:
    """Two stores, two keys or two operations never share an id."""
    ids = {
        key_id(store, key, operation)
        for store in (0, 1)
        for key in ("1", "2", "1/2")
        for operation in (pb.OPERATION_SUM, pb.OPERATION_BROADCAST)
    }
    assert len(ids) == 12


def test_ids_are_the_same_in_every_process() -> None:
    """The hash does not depend on the process, as Python's own does."""
    code = "from psum.client.core.placement import key_id; print(key_id(1, 'weight', 1))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert int(other.stdout) == key_id(1, "weight", pb.OPERATION_SUM)


def test_a_signal_handler_may_place_a_key_while_another_key_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler may push a new key in the middle of that. Both keys, and later ones, go where other ranks send them."""
    names = [str(number) for number in range(8)]
    expected = [Placement(2 << 20, (1,) * 4).turn(0, name, 0) for name in names]
    interrupted = Placement(2 << 20, (1,) * 4)
    handled: list[int] = []

    def interrupt(text: str) -> int:
        if not handled:
            handled.append(-1)
            handled[0] = interrupted.turn(0, "4", 0)
        return _hash(text)

    monkeypatch.setattr("psum.client.core.placement._hash", interrupt)
    assert [interrupted.turn(0, "0", 0), *handled] == [expected[0], expected[4]]
    assert [interrupted.turn(0, name, 0) for name in reversed(names)] == expected[::-1]
