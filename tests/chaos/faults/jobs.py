"""Small jobs of which every sum is checked: what one does, how a worker process does its part, what may come of it."""

import dataclasses
import gc
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from faults.worker import PATIENCE_SECONDS, Values, contribution, describe, expected_sum
from psum import client as psum

#: How long a worker may take to leave: another one may need a sum that it has, from an aggregator that is away.
_LEAVING_SECONDS = 30.0

#: How many rounds of a key are under way at once.
_WINDOW = 2

#: The end of a job in which a rank lacked a sum that only ranks which had left had: psum does not wait for ever there.
LEFT_ALONE = "left alone"


@dataclasses.dataclass(frozen=True)
class Spec:
    """A job.

    Attributes:
        name: Its name.
        num_workers: The number of ranks.
        rounds: How often each key is push-pulled.
        sizes: The keys' numbers of elements.
        partition_bytes: The size of a shard.
        aggregators: Which aggregators it uses, by their number.
        planes: How each rank's large payloads cross.
        odd: Whether the last rank takes the last key for one element longer, which must fail that key on all ranks.
    """

    name: str
    num_workers: int
    rounds: int
    sizes: tuple[int, ...]
    partition_bytes: int
    aggregators: tuple[int, ...]
    planes: tuple[str, ...]
    odd: bool

    @staticmethod
    def draw(chance: random.Random, name: str, num_workers: int, num_aggregators: int) -> "Spec":
        """A random job, which always uses aggregator 0."""
        sizes = tuple(int(10 ** chance.uniform(0, 5.2)) for _ in range(chance.randint(1, 6)))
        others = [a for a in range(1, num_aggregators) if chance.random() < 0.6]
        return Spec(
            name=name,
            num_workers=num_workers,
            rounds=chance.randint(3, 40),
            sizes=sizes,
            partition_bytes=chance.choice([1 << 12, 1 << 16, 1 << 20]),
            aggregators=(0, *others),
            planes=tuple(chance.choice(["inline", "direct", "shm"]) for _ in range(num_workers)),
            odd=chance.random() < 0.1 and num_workers > 1,
        )

    def keys(self, rank: int | None = None) -> list[tuple[str, int]]:
        """Each key and its size, as a rank has it."""
        sizes = list(self.sizes)
        if self.odd and rank == self.num_workers - 1:
            sizes[-1] += 1
        return [(f"{self.name} {index}", size) for index, size in enumerate(sizes)]


def work(tell: Callable[..., None], *, spec: dict[str, Any], ranks: Sequence[int], settings: dict[str, Any]) -> None:
    """Does these ranks' part of a job, each in a thread, and tells `working` for each, then `worked` for all.

    `worked` has "outcomes": for each rank, by its number as text, the number of sums "checked", those of them that were
    "wrong", the "error" that ended its part, None where it came to its end, and when that was.
    """
    job = Spec(**spec)
    settings |= {"job": job.name, "num_workers": job.num_workers, "partition_bytes": job.partition_bytes}
    settings["aggregators"] = tuple(settings["aggregators"])

    def begin(rank: int) -> dict[str, Any]:
        checked: list[bool] = []
        error = None
        try:
            client = psum.connect(psum.Settings(**settings | {"rank": rank, "plane": job.planes[rank]}))
            try:
                tell("working", rank=rank)
                for right in _sums(client, job):
                    checked.append(right)
            finally:
                client.close(_LEAVING_SECONDS)
        except psum.PsumError as caught:
            error = caught
        return {
            "checked": len(checked),
            "wrong": checked.count(False),
            "error": describe(error),
            "at": time.monotonic(),
        }

    with ThreadPoolExecutor(len(ranks)) as pool:
        outcomes = dict(zip(map(str, ranks), pool.map(begin, ranks), strict=True))
    # Closed clients are in cycles, with threads of gRPC's: what is left after this is really kept.
    gc.collect()
    tell("worked", job=job.name, outcomes=outcomes)


def _sums(client: psum.Client, job: Spec) -> Iterator[bool]:
    """Push-pulls all rounds of all keys; yields for each sum whether it is right, and raises the first error."""
    store = client.store()
    under_way: deque[list[tuple[Future[None], Values, str, int]]] = deque()
    for round in range(job.rounds + _WINDOW):
        if round < job.rounds:
            begun = []
            for key, size in job.keys(client.rank):
                value = contribution(key, round, client.rank, size)
                begun.append((store.push_pull_async(key, value), value, key, round))
            under_way.append(begun)
        if round >= _WINDOW:
            for future, value, key, of_round in under_way.popleft():
                future.result(PATIENCE_SECONDS)
                expected = expected_sum(key, of_round, range(client.num_workers), value.size)
                yield bool(np.array_equal(value, expected))


def judge(
    spec: Spec, outcomes: dict[str, dict[str, Any]], killed: dict[int, float], patience: float
) -> tuple[str, list[str]]:
    """What became of a job, in a word, and what of it may not be.

    Args:
        spec: The job.
        outcomes: As `work` tells them, of the ranks that lived to tell.
        killed: The ranks that were killed, and when, by time.monotonic.
        patience: Within how many seconds of that the others must have ended.
    """
    problems = []
    kinds = set()
    # A disagreement that is meant to be is an end too: who has heard of it leaves in order.
    came_to_their_end = {
        int(rank)
        for rank, outcome in outcomes.items()
        if outcome["error"] is None or (spec.odd and outcome["error"]["kind"] == "DisagreementError")
    }
    for rank, outcome in sorted(outcomes.items()):
        error = outcome["error"]
        who = f"job {spec.name!r} rank {rank}"
        kinds.add(error["kind"] if error else "done")
        if outcome["wrong"]:
            problems.append(f"{who}: {outcome['wrong']} of {outcome['checked']} sums are wrong")
        if error is None:
            if spec.odd:
                problems.append(f"{who}: has sums of a key on which the ranks disagree")
            elif outcome["checked"] != spec.rounds * len(spec.sizes):
                problems.append(f"{who}: {outcome['checked']} sums of {spec.rounds * len(spec.sizes)}")
        elif error["kind"] == "WorkerLostError" and killed and set(error["ranks"]) & set(killed):
            late = outcome["at"] - max(killed.values()) - patience
            if late > 0:
                problems.append(f"{who}: heard of the lost rank {late:.1f} s too late")
        elif error["kind"] == "WorkerLostError" and set(error["ranks"]) <= came_to_their_end:
            # It was away for longer than the others waited with their leaving, and then the aggregator was too.
            kinds.add(LEFT_ALONE)
        elif not (error["kind"] == "DisagreementError" and spec.odd):
            problems.append(f"{who}: {error['kind']}: {error['text']}")
    if LEFT_ALONE in kinds:
        return LEFT_ALONE, problems
    if "WorkerLostError" in kinds:
        return "lost a worker", problems
    return "disagreed" if "DisagreementError" in kinds else "done", problems
