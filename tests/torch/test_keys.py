"""Names of keys for operations that have none."""

from psum.torch.keys import KeySequence, Kind, rounded_up, slots

BUCKET = Kind("all_reduce", "float32", 6 << 20, 24 << 20)
SMALL = Kind("all_reduce", "float32", 4, 16)


def test_a_training_uses_the_same_keys_in_every_step() -> None:
    """The number of keys does not grow with the number of operations."""
    for has_callbacks in (False, True):
        keys = KeySequence()
        if has_callbacks:
            keys.expect_callbacks()
        names = [keys.name(kind) for _ in range(100) for kind in (BUCKET, BUCKET, SMALL)]
        assert len(set(names)) == slots(BUCKET.nbytes) + slots(SMALL.nbytes)


def test_operations_that_follow_each_other_have_keys_of_their_own() -> None:
    """So they need not wait for each other, unless they are very large."""
    keys = KeySequence()
    assert len({keys.name(BUCKET) for _ in range(2)}) == 2
    assert slots(1 << 30) == 1
    assert slots(16) == slots(0) == 8


def test_ranks_that_disagree_use_one_key() -> None:
    """The first operation of every rank has the same name, whatever it is: psum then sees both."""
    assert KeySequence().name(BUCKET) == KeySequence().name(SMALL)


def test_with_callbacks_only_the_order_within_a_kind_counts() -> None:
    """Ranks whose threads begin operations in other orders give them the same names."""
    names = []
    for order in ((BUCKET, SMALL, SMALL, BUCKET), (SMALL, BUCKET, BUCKET, SMALL)):
        keys = KeySequence()
        keys.expect_callbacks()
        names.append({(kind, keys.name(kind)) for kind in order})
    assert names[0] == names[1]


def test_sizes_are_rounded_to_few() -> None:
    """Rounded sizes are not smaller, at most a third larger, and few."""
    sizes = range(64, 1 << 16)
    assert all(size <= rounded_up(size) < size + max(64, size / 3) for size in sizes)
    assert len({rounded_up(size) for size in sizes}) < 64
    assert rounded_up(0) == 64
