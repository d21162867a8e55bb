"""Small random jobs with every sum checked: their specification, a worker's part in them, and the allowed outcomes."""

import ctypes
import dataclasses
import gc
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from faults.worker import PATIENCE_SECONDS, Values, contribution, describe, expected_sum
from psum import client as psum
from psum.planes import CHOICES

#: Time limit for a worker's close, which waits while another rank may need one of the worker's sums.
_CLOSE_TIMEOUT_SECONDS = 30.0

#: Number of rounds in flight per key.
_WINDOW = 2

#: Outcome of a job in which a rank lacked a sum that only departed ranks had. psum fails such a job after a time limit.
STRANDED = "stranded a rank"


@dataclasses.dataclass(frozen=True)
class JobSpec:
    """Specification of a job.

    Attributes:
        name: The job's name.
        num_workers: Number of ranks.
        rounds: Number of push-pulls per key.
        sizes: Number of elements of each key.
        partition_bytes: Size of a shard.
        aggregators: Indices of the aggregators that it uses.
        planes: Plane of each rank's large payloads.
        mismatched: Whether the last rank declares the last key one element longer. That must fail the key on all ranks.
        groups: The ranks in groups. The sums of the groups are added in this order.
        relays: Index of the aggregator that is the relay of each group; None for a rank without a relay.
    """

    name: str
    num_workers: int
    rounds: int
    sizes: tuple[int, ...]
    partition_bytes: int
    aggregators: tuple[int, ...]
    planes: tuple[str, ...]
    mismatched: bool
    groups: tuple[tuple[int, ...], ...]
    relays: tuple[int | None, ...]

    @staticmethod
    def draw(chance: random.Random, name: str, num_workers: int, num_aggregators: int) -> "JobSpec":
        """Draw a random job, which always uses aggregator 0."""
        sizes = tuple(int(10 ** chance.uniform(0, 5.2)) for _ in range(chance.randint(1, 6)))
        others = [a for a in range(1, num_aggregators) if chance.random() < 0.6]
        groups = _draw_groups(chance, num_workers)
        relays = chance.sample(range(num_aggregators), len(groups))
        return JobSpec(
            name=name,
            num_workers=num_workers,
            rounds=chance.randint(3, 40),
            sizes=sizes,
            partition_bytes=chance.choice([1 << 12, 1 << 16, 1 << 20]),
            aggregators=(0, *others),
            planes=tuple(chance.choice(CHOICES[1:]) for _ in range(num_workers)),
            mismatched=chance.random() < 0.1 and num_workers > 1,
            groups=groups,
            relays=tuple(
                relay if len(group) > 1 or chance.random() < 0.3 else None
                for group, relay in zip(groups, relays, strict=True)
            ),
        )

    def relay_settings(self, rank: int, addresses: Sequence[str]) -> dict[str, Any]:
        """Return the fields of psum.client.Settings for a rank's relay, given the addresses of all aggregators."""
        group, relay = self._group_of(rank)
        return {} if relay is None else {"relay": f"{addresses[relay]}/{len(group)}"}

    def relay_of(self, rank: int) -> int | None:
        """Return the index of the aggregator that is a rank's relay, None if it has none."""
        return self._group_of(rank)[1]

    def keys(self, rank: int | None = None) -> list[tuple[str, int]]:
        """Return each key with the size that a rank declares."""
        sizes = list(self.sizes)
        if self.mismatched and rank == self.num_workers - 1:
            sizes[-1] += 1
        return [(f"{self.name} {index}", size) for index, size in enumerate(sizes)]

    def _group_of(self, rank: int) -> tuple[tuple[int, ...], int | None]:
        [found] = [(g, r) for g, r in zip(self.groups, self.relays, strict=True) if rank in g]
        return found


def _draw_groups(chance: random.Random, num_workers: int) -> tuple[tuple[int, ...], ...]:
    """Divide consecutive ranks into groups, in half of the jobs each rank into a group of its own."""
    bounds = [0, *(rank for rank in range(1, num_workers) if chance.random() < 0.4), num_workers]
    if chance.random() < 0.5:
        bounds = list(range(num_workers + 1))
    return tuple(tuple(range(first, stop)) for first, stop in itertools.pairwise(bounds))


def work(
    tell: Callable[..., None],
    *,
    spec: dict[str, Any],
    ranks: Sequence[int],
    addresses: Sequence[str],
    settings: dict[str, Any],
) -> None:
    """Run these ranks of a job, each in a thread. Report a `working` event for each rank that has joined, a `summed`
    event for each that has its first sum, then one `worked` event.

    The `worked` event has "outcomes", a dictionary by rank (as text): the number of sums "checked", the number of
    "wrong" ones, the "error" that ended the rank's work (None if it completed), and the time "at" which it ended.
    """
    job = JobSpec(**spec)
    settings |= {"job": job.name, "num_workers": job.num_workers, "partition_bytes": job.partition_bytes}
    settings["aggregators"] = tuple(addresses[a] for a in job.aggregators)

    def begin(rank: int) -> dict[str, Any]:
        checked: list[bool] = []
        error = None
        own = settings | {"rank": rank, "plane": job.planes[rank]} | job.relay_settings(rank, addresses)
        try:
            client = psum.connect(psum.Settings(**own))
            try:
                tell("working", rank=rank)
                for right in _sums(client, job):
                    if not checked:
                        tell("summed", rank=rank)
                    checked.append(right)
            finally:
                client.close(_CLOSE_TIMEOUT_SECONDS)
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
    # Closed clients are in reference cycles with gRPC's threads. After this, remaining memory is a leak.
    gc.collect()
    # The allocator keeps what was freed between blocks that are in use: more of it, the larger a job was.
    ctypes.CDLL(None).malloc_trim(0)
    tell("worked", job=job.name, outcomes=outcomes)


def _sums(client: psum.Client, job: JobSpec) -> Iterator[bool]:
    """Push-pull all rounds of all keys. Yield for each sum whether it is right, and raise the first error."""
    store = client.store()
    in_flight: deque[list[tuple[psum.Outcome, Values, str, int]]] = deque()
    for round in range(job.rounds + _WINDOW):
        if round < job.rounds:
            started = []
            for key, size in job.keys(client.rank):
                value = contribution(key, round, client.rank, size)
                started.append((store.push_pull_async(key, value), value, key, round))
            in_flight.append(started)
        if round >= _WINDOW:
            for future, value, key, of_round in in_flight.popleft():
                future.result(PATIENCE_SECONDS)
                expected = expected_sum(key, of_round, job.groups, value.size)
                yield bool(np.array_equal(value, expected))


def check_outcomes(
    spec: JobSpec, outcomes: dict[str, dict[str, Any]], killed: dict[int, float], patience: float
) -> tuple[str, list[str]]:
    """Return the outcome of a job in a few words, and the problems: outcomes that are not allowed.

    Args:
        spec: The job.
        outcomes: Outcomes that `work` reported for the surviving ranks.
        killed: The ranks that were killed, with the time.monotonic of the kill.
        patience: Seconds after the last kill within which all other ranks must have ended.
    """
    problems = []
    kinds = set()
    # An intended disagreement counts as completion: a rank that gets the error leaves in order.
    completed = {
        int(rank)
        for rank, outcome in outcomes.items()
        if outcome["error"] is None or (spec.mismatched and outcome["error"]["kind"] == "DisagreementError")
    }
    for rank, outcome in sorted(outcomes.items()):
        error = outcome["error"]
        name = f"job {spec.name!r} rank {rank}"
        kinds.add(error["kind"] if error else "done")
        if outcome["wrong"]:
            problems.append(f"{name}: {outcome['wrong']} of {outcome['checked']} sums are wrong")
        if error is None:
            if spec.mismatched:
                problems.append(f"{name}: got sums of a key on which the ranks disagree")
            elif outcome["checked"] != spec.rounds * len(spec.sizes):
                problems.append(f"{name}: got {outcome['checked']} of {spec.rounds * len(spec.sizes)} sums")
        elif error["kind"] == "WorkerLostError" and killed and set(error["ranks"]) & set(killed):
            late = outcome["at"] - max(killed.values()) - patience
            if late > 0:
                problems.append(f"{name}: got the error about the lost rank {late:.1f} s too late")
        elif error["kind"] == "WorkerLostError" and set(error["ranks"]) <= completed:
            # This rank was disconnected for longer than the others delayed their close, then the aggregator was lost.
            kinds.add(STRANDED)
        elif not (error["kind"] == "DisagreementError" and spec.mismatched):
            problems.append(f"{name}: {error['kind']}: {error['text']}")
    if STRANDED in kinds:
        return STRANDED, problems
    if "WorkerLostError" in kinds:
        return "lost a worker", problems
    return "disagreed" if "DisagreementError" in kinds else "done", problems
