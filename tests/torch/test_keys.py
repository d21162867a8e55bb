"""Names of keys for operations that have none."""

import pytest

from psum.torch.keys import MOST_KINDS, KeySequence, Kind, rounded_up, slots

BUCKET = Kind("all_reduce", "float32", 6 << 20, 24 << 20)
SMALL = Kind("all_reduce", "float32", 4, 16)


def kind(nbytes: int) -> Kind:
    """The sum of so many bytes."""
    return Kind("all_reduce", "float32", nbytes // 4, nbytes)


@pytest.mark.parametrize("level", [0, 1])
def test_a_training_uses_the_same_keys_in_every_step(level: int) -> None:
    """The number of keys does not grow with the number of operations."""
    keys = KeySequence(level)
    names = [keys.name(kind) for _ in range(100) for kind in (BUCKET, BUCKET, SMALL)]
    assert len(set(names)) == slots(BUCKET.nbytes) + slots(SMALL.nbytes)


def test_operations_that_follow_each_other_have_keys_of_their_own() -> None:
    """So they need not wait for each other, unless they are very large."""
    keys = KeySequence()
    assert len({keys.name(BUCKET) for _ in range(100)}) == slots(BUCKET.nbytes) == 2
    assert len({keys.name(kind(1 << 30)) for _ in range(100)}) == slots(1 << 30) == 1
    assert slots(16) == slots(0) == 8


def names_of_passes(keys: KeySequence, passes: int, *kinds: Kind) -> list[list[str]]:
    """The names of the keys in each of some passes."""
    return [[keys.name(each) for each in kinds] for _ in range(passes)]


def test_each_sum_of_a_pass_has_a_key_of_its_own() -> None:
    """From the third pass on, whatever smaller and other operations come between. It is the same key in every pass."""
    keys = KeySequence()
    first, last = kind(2 << 20), kind(90 << 20)
    passes = names_of_passes(keys, 2, first, *[BUCKET] * 12, last)
    assert len(set(passes[1])) == 4
    later = []
    for _ in range(20):
        keys.name(SMALL)
        keys.name(BUCKET._replace(name="broadcast of float32 from rank 0"))
        later += names_of_passes(keys, 1, first, *[BUCKET] * 12, last)
    assert {len(set(names)) for names in later} == {14}
    assert len({each[-1] for each in passes + later}) == 1
    assert len({tuple(names[1:]) for names in later}) == 1


def test_sums_of_different_sizes_have_one_key_each() -> None:
    """Although they come again in the next pass."""
    keys = KeySequence()
    names = names_of_passes(keys, 20, *[kind(size << 20) for size in (8, 31, 26, 27, 10)])
    assert len({name for each in names for name in each}) == 5


def test_the_memory_of_a_pass_is_bounded() -> None:
    """A kind whose keys would take very much memory has few."""
    keys = KeySequence()
    names = names_of_passes(keys, 10, kind(2 << 30), *[kind(1 << 30)] * 5)
    assert len({name for each in names for name in each}) == 2


def test_other_passes_later_get_keys_of_their_own_too() -> None:
    """A second model, or other buckets, as DistributedDataParallel makes them after the first step."""
    keys = KeySequence()
    names_of_passes(keys, 1, *[BUCKET] * 3, kind(5 << 20))
    assert len(set(names_of_passes(keys, 3, kind(6 << 20), *[BUCKET] * 6)[-1])) == 7
    assert len(set(names_of_passes(keys, 3, kind(9 << 20), *[BUCKET] * 9)[-1])) == 10


@pytest.mark.parametrize("level", [0, 1])
def test_ranks_that_disagree_use_one_key(level: int) -> None:
    """The first operation of every rank has the same name, whatever it is: psum then sees both."""
    assert KeySequence(level).name(BUCKET) == KeySequence(level).name(SMALL)


def test_levels_of_callbacks_share_no_key() -> None:
    """It does not matter whether the program or a callback begins an operation first."""
    assert len({KeySequence(level).name(BUCKET) for level in range(3)}) == 3


@pytest.mark.parametrize("level", [0, 1])
def test_the_number_of_kinds_with_own_keys_is_bounded(level: int) -> None:
    """Those that came first keep theirs."""
    keys = KeySequence(level)
    kinds = [kind(4 * size) for size in range(2 * MOST_KINDS)]
    for _ in range(2):
        assert [each for each in kinds if keys.has_own_keys(each)] == kinds[:MOST_KINDS]


def test_sizes_are_rounded_to_few() -> None:
    """Rounded sizes are not smaller, at most a third larger, and few."""
    sizes = range(64, 1 << 16)
    assert all(size <= rounded_up(size) < size + max(64, size / 3) for size in sizes)
    assert len({rounded_up(size) for size in sizes}) < 64
    assert rounded_up(0) == 64
