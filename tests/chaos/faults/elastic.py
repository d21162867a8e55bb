"""The steps of a worker in an elastic job, and the check of sums that lack some ranks."""

import functools
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from faults import worker
from psum import client as psum

#: The sizes of the tensors of a step, in elements. Some have several shards, on both aggregators.
SIZES: Final = (5, 70_000, 1000, 200_000)

_PATIENCE_SECONDS: Final = 120.0


def are_sums(
    value: worker.Values,
    parts: Sequence[psum.Contribution],
    key: str,
    round: int,
    *,
    rank: int,
    num_workers: int,
    group_size: int = 1,
) -> bool:
    """Return whether each part of a result is a sum, in rank order, of as many ranks as its count says.

    Relays add up the ranks of their groups first.

    Args:
        value: The result.
        parts: Its parts with fewer than all ranks.
        key: The key.
        round: The round.
        rank: A rank that has contributed to all parts.
        num_workers: The number of ranks.
        group_size: For how many consecutive ranks each relay sums.
    """
    values = [worker.contribution(key, round, each, value.size) for each in range(num_workers)]
    edges = [0, *itertools.chain.from_iterable((part.start, part.stop) for part in parts), value.size]
    counts = {part.start: part.count for part in parts}
    for start, stop in itertools.pairwise(edges):
        piece = value[start:stop]
        ways = itertools.combinations(range(num_workers), counts.get(start, num_workers))
        sums = (
            functools.reduce(
                np.add,
                (
                    functools.reduce(np.add, (values[each][start:stop] for each in group))
                    for _, group in itertools.groupby(ranks, lambda each: each // group_size)
                ),
            )
            for ranks in ways
            if rank in ranks
        )
        if not any(np.array_equal(piece, one) for one in sums):
            return False
    return True


def run_steps(client: psum.Client, stop: threading.Event, tell: Callable[..., None], group_size: int) -> None:
    """Run steps until `stop` is set on some rank. All ranks stop after the same step.

    Reports each step as a `step` event with its number, a digest of all bits that came, whether each part of them is a
    sum of as many ranks as its count says, the counts, and when it was over.
    """
    store = client.store()
    for step in itertools.count():
        votes = np.array([stop.is_set()], np.int32)
        values = [worker.contribution(str(key), step, client.rank, size) for key, size in enumerate(SIZES)]
        futures = [store.push_pull_async(key, value, priority=-key) for key, value in enumerate(values)]
        futures.append(store.push_pull_async("stop", votes))
        for future in futures:
            future.result(_PATIENCE_SECONDS)
        over = time.monotonic()
        right = [
            are_sums(
                value,
                future.contributors,
                str(key),
                step,
                rank=client.rank,
                num_workers=client.num_workers,
                group_size=group_size,
            )
            for key, (value, future) in enumerate(zip(values, futures, strict=False))
        ]
        digest = hashlib.blake2b(b"".join(array.tobytes() for array in (*values, votes))).hexdigest()
        counts = [[(part.start, part.stop, part.count) for part in future.contributors] for future in futures]
        tell("step", step=step, digest=digest, right=all(right), counts=counts, at=over)
        if votes[0]:
            break
    tell("stepped")


def counts_of(event: dict[str, Any]) -> set[int]:
    """Return the counts that are not those of all ranks in a `step` event."""
    return {count for parts in event["counts"] for _, _, count in parts}
