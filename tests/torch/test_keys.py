"""Names of keys for operations that have none."""

import pytest

from psum.torch.keys import MOST_KINDS, KeySequence, Kind, rounded_up, slots

BUCKET = Kind("all_reduce", "float32", 6 << 20, 24 << 20)
SMALL = Kind("all_reduce", "float32", 4, 16)


@pytest.mark.parametrize("level", [0, 1])
def test_a_training_uses_the_same_keys_in_every_step(level: int) -> None:
    """The number of keys does not grow with the number of operations."""
    keys = KeySequence(level)
    names = [keys.name(kind) for _ in range(100) for kind in (BUCKET, BUCKET, SMALL)]
    assert len(set(names)) == slots(BUCKET.nbytes) + slots(SMALL.nbytes)


def test_operations_that_follow_each_other_have_keys_of_their_own() -> None:
    """So they need not wait for each other, unless they are very large."""
    keys = KeySequence()
    assert len({keys.name(BUCKET) for _ in range(2)}) == 2
    assert slots(1 << 30) == 1
    assert slots(16) == slots(0) == 8


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
    kinds = [Kind("all_reduce", "float32", size, 4 * size) for size in range(2 * MOST_KINDS)]
    for _ in range(2):
        assert [kind for kind in kinds if keys.has_own_keys(kind)] == kinds[:MOST_KINDS]


def test_sizes_are_rounded_to_few() -> None:
    """Rounded sizes are not smaller, at most a third larger, and few."""
    sizes = range(64, 1 << 16)
    assert all(size <= rounded_up(size) < size + max(64, size / 3) for size in sizes)
    assert len({rounded_up(size) for size in sizes}) < 64
    assert rounded_up(0) == 64
