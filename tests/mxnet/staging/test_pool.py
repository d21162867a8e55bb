"""The pool of stages by itself."""

import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from psum.mxnet import StageStatistics
from psum.mxnet.arguments import Arrays
from psum.mxnet.arrays.dlpack import address_of
from psum.mxnet.compat import mx
from psum.mxnet.staging.stages import StagePool, Turn
from tests.polling import PATIENCE_SECONDS


def arrays(shape: tuple[int, ...], dtype: str = "float32") -> Arrays:
    return Arrays.of(mx.nd.zeros(shape, dtype=dtype), "value")


def test_alike() -> None:
    """A stage has the requested shape and type, and its memory is where its turn says."""
    turn = StagePool().take("k", arrays((2, 3), "float16"))
    assert (turn.array.shape, turn.array.dtype, turn.memory.offset) == ((2, 3), np.float16, None)
    assert address_of(turn.array) == turn.memory.address
    assert turn.fresh
    assert turn.is_first


def test_a_key_has_one_stage_at_a_time() -> None:
    """A key has one stage, however many turns it takes ahead. The stage is idle when all turns are over."""
    pool, like = StagePool(), arrays((2, 3))
    turns = [pool.take("k", like) for _ in range(5)]
    assert len({id(turn.array) for turn in turns}) == 1
    assert [turn.is_first for turn in turns] == [turn.fresh for turn in turns] == [True] + [False] * 4
    for turn in turns:
        assert pool.statistics() == StageStatistics(allocated=1, in_use=1)
        assert turn.failure() is None
        pool.give_back(turn)
    assert pool.statistics() == StageStatistics(allocated=1, in_use=0)
    again = pool.take("k", like)
    assert again.array is turns[0].array
    assert again.is_first
    assert not again.fresh


def test_keys_under_way_at_once_have_stages_of_their_own() -> None:
    """Keys that are under way at once have different stages. An idle stage serves any key of its shape and type, and
    the one that is idle longest comes first."""
    pool, like = StagePool(), arrays((2, 3))
    first, second = pool.take("a", like), pool.take("b", like)
    assert first.array is not second.array
    pool.give_back(second)
    pool.give_back(first)
    for other in (arrays((3, 2)), arrays((2, 3), "int32")):
        assert pool.take(other.shape, other).fresh
    assert pool.take("e", like).array is second.array
    assert pool.take("f", like).array is first.array
    assert pool.statistics() == StageStatistics(allocated=4, in_use=4)


def test_a_turn_is_given_back_without_waiting() -> None:
    """Giving a turn back does not wait for the pool's lock: a signal's handler may wait for a sum while the main thread
    has it."""
    pool, like = StagePool(), arrays((2, 3))
    turns = [pool.take("k", like) for _ in range(2)]
    with pool._lock:
        for turn in turns:
            assert turn.failure() is None
            thread = threading.Thread(target=pool.give_back, args=(turn,))
            thread.start()
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
    assert pool.statistics() == StageStatistics(allocated=1, in_use=0)


def test_after_a_failure_later_turns_are_refused() -> None:
    """Turns after a failed one are refused, even if the engine has skipped a turn that was not given back yet. The
    stage is not lent again."""
    pool, like = StagePool(), arrays((2,))
    first, failing, skipped, last = (pool.take("k", like) for _ in range(4))
    pool.give_back(first)
    assert failing.failure() is None
    # The engine has finished with it, and goes on before it tells that it has skipped it.
    assert skipped.failure() == "an MXNet operation that computes its value failed there"
    pool.give_back(failing, "rank 1 was lost")
    pool.give_back(skipped, "whatever")
    assert last.failure() == "rank 1 was lost"
    pool.give_back(last, "whatever")
    assert pool.statistics() == StageStatistics(allocated=0, in_use=0)
    assert pool.take("k", like).array is not first.array


#: Two shapes of two types. A key keeps one of these.
KINDS = [arrays((2,)), arrays((3,)), arrays((2,), "int8"), arrays((3,), "float16")]


#: Takes a turn (True) of a key, or ends (False) its oldest one.
STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 11)), max_size=60)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_bounded_whatever_the_pattern(steps: list[tuple[bool, int]]) -> None:
    """There are never more stages of a kind than keys of that kind were under way at once.

    No two keys have the same stage at once, and a key's turns end at the stage where it has begun.
    """
    pool = StagePool()
    under_way: dict[int, list[Turn]] = {}
    most = dict.fromkeys(range(len(KINDS)), 0)
    for takes, key in steps:
        if takes:
            under_way.setdefault(key, []).append(pool.take(key, KINDS[key % len(KINDS)]))
        elif key in under_way:
            turn = under_way[key].pop(0)
            assert turn.failure() is None
            pool.give_back(turn)
            if not under_way[key]:
                del under_way[key]
        stages = [{id(turn.array) for turn in turns} for turns in under_way.values()]
        assert len(set().union(*stages)) == len(stages) == pool.statistics().in_use
        for kind in most:
            most[kind] = max(most[kind], sum(key % len(KINDS) == kind for key in under_way))
        assert pool.statistics().allocated == sum(most.values()) <= len({key for _, key in steps})
