"""Kills workers of an elastic training at random moments, and checks what the others hold after each step."""

import bisect
import contextlib
import itertools
import math
import pathlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from faults.aggregators import AggregatorProcess, aggregators
from faults.learning import rehearse
from faults.processes import Event, WorkerProcess

WORKERS: Final = 4

#: On how many hosts they are, with a relay on each, if there are relays.
HOSTS: Final = 2

#: The plane that stands for relays, on shared memory.
RELAYS: Final = "relays"

#: The least number of members. One more is always left, so that the next kill does not end the job.
_MINIMUM: Final = 1

#: How long a worker may take to join, with all faults that come in between.
_JOIN_SECONDS: Final = 60.0

#: The training pauses after each step for this long, so that steps are of about the same length under load.
_PAUSE_SECONDS: Final = 0.01

#: The part of the training, at its end, whose losses are compared.
_TAIL: Final = 0.1

#: How many steps it makes at least after the last fault. More than the fewest that are compared.
_LAST_STEPS: Final = 20

Progress = Callable[[str], None]
Report = dict[str, Any]


class ElasticTraining:
    """Worker processes of an elastic job, each of which may be killed and replaced.

    Args:
        directory: Directory for their logs.
        addresses: The aggregators' addresses.
        seed: Seed for the samples.
        relays: The relay of each rank; none without relays.
        settings: Additional fields of psum.client.Settings for all ranks.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        addresses: Sequence[str],
        seed: int,
        relays: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self._relays = relays
        self._directory = directory
        self._seed = seed
        self._settings = {
            "aggregators": list(addresses),
            "num_workers": WORKERS,
            "elastic": [_MINIMUM, WORKERS],
            "partition_bytes": 1 << 15,
            "connect_timeout": 30.0,
            "reconnect_timeout": 30.0,
        } | settings
        self._ended: list[WorkerProcess] = []
        self.workers = {rank: self._start(rank, joining=False) for rank in range(WORKERS)}

    @property
    def members(self) -> list[int]:
        """The ranks whose present process has made a step, in ascending order."""
        return [rank for rank, worker in sorted(self.workers.items()) if any(map(_is_step, list(worker.events)))]

    @property
    def processes(self) -> list[WorkerProcess]:
        """All processes that there were, the present ones last."""
        return [*self._ended, *self.workers.values()]

    def kill(self, rank: int) -> None:
        """Kill the process of a rank with SIGKILL."""
        worker = self.workers.pop(rank)
        worker.close()
        self._ended.append(worker)

    def replace(self, rank: int) -> None:
        """Start a process in the place of one that was killed."""
        self.workers[rank] = self._start(rank, joining=True)

    def wait_for_members(self, count: int) -> None:
        """Wait until so many ranks have made a step.

        Raises:
            AssertionError: They have not in time, or a worker has failed.
        """
        deadline = time.monotonic() + _JOIN_SECONDS
        while len(self.members) < count:
            self.check_workers()
            missing = [self.workers[rank] for rank in sorted(set(self.workers) - set(self.members))]
            assert time.monotonic() < deadline, f"did not join in time: {[worker.log[-2000:] for worker in missing]}"
            time.sleep(0.01)

    def wait_for_step(self, step: int) -> None:
        """Wait until this step was made.

        Raises:
            AssertionError: It was not in time, or a worker has failed.
        """
        deadline = time.monotonic() + _JOIN_SECONDS
        while (made := max(_steps(self.processes))) < step:
            self.check_workers()
            assert time.monotonic() < deadline, f"step {step} was not made in time, only {made}"
            time.sleep(0.02)

    def check_workers(self) -> None:
        """Raise AssertionError if a worker has failed that was not killed."""
        for rank, worker in self.workers.items():
            assert worker.last != "error", f"rank {rank}: {worker.events[-1]}"
            assert worker.process.poll() is None, f"rank {rank} has ended: {worker.log[-2000:]}"

    def stop(self) -> list[Event]:
        """Make all members end after the same step, and return what they hold then."""
        next(iter(self.workers.values())).send("stop")
        results = [worker.next("learned") for worker in self.workers.values()]
        for worker in self.workers.values():
            worker.send("close")
        for worker in self.workers.values():
            worker.next("closed")
        return results

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.close()

    def _start(self, rank: int, *, joining: bool) -> WorkerProcess:
        number = sum(worker is not None for worker in self._ended)
        worker = WorkerProcess(self._directory / f"worker-{rank}-{number}.log")
        given: dict[str, Any] = {"rank": rank, "joining": joining}
        if self._relays:
            given |= {"relay": self._relays[rank], "local_size": WORKERS // HOSTS}
        worker.send("join", settings=self._settings | given)
        worker.send("learn", seed=self._seed, pause=_PAUSE_SECONDS)
        return worker


def kill_workers(
    directory: pathlib.Path,
    kills: int,
    seed: int,
    plane: str,
    progress: Progress = lambda line: None,
    *,
    replace: bool = True,
    aggregator_kills: float = 0.25,
) -> Report:
    """Kill workers with SIGKILL at random moments of a training with four workers over two aggregators.

    Args:
        directory: Directory for logs.
        kills: Number of kills. Without replacements there are at most two.
        seed: Seed for the times and the targets.
        plane: Plane for large payloads; "relays": shared memory, and two hosts with a relay each. A relay may then be
            killed instead of an aggregator.
        progress: Called with a line of text after each kill.
        replace: Whether a new process takes the place of each killed one. One in four kills hits before the process has
            joined that replaces the one before.
        aggregator_kills: How often an aggregator is killed, and started again, at about the same time.

    Returns:
        Counts and times by name. "same" says that all members held the same bits after each step, that each sum counted
        all ranks that were there, and that the loss ended as in a training in this process with the members of each
        step; "problems" says what did not hold.
    """
    chance = random.Random(seed)
    begin = time.monotonic()
    moments: list[float] = []
    disturbed: list[float] = []
    with contextlib.ExitStack() as stack:
        relayed = plane == RELAYS
        processes = stack.enter_context(aggregators(directory, 2 + (HOSTS if relayed else 0)))
        owners, relays = [[each.address for each in some] for some in (processes[:2], processes[2:])]
        by_rank = [relays[rank * HOSTS // WORKERS] for rank in range(WORKERS)] if relayed else []
        settings = {"plane": "shm" if relayed else plane}
        training = ElasticTraining(directory / "training", owners, seed, by_rank, **settings)
        stack.callback(training.close)
        training.wait_for_members(WORKERS)
        for number in range(1, kills + 1 if replace else min(kills, WORKERS - _MINIMUM - 1) + 1):
            if chance.random() < 0.75:
                training.wait_for_members(len(training.workers))
            else:
                training.wait_for_members(2)
            time.sleep(chance.uniform(0, 0.8))
            training.check_workers()
            members = training.members
            victim = chance.choice(sorted(training.workers) if len(members) > 2 else members)
            step = max(_steps(training.processes), default=0)
            moments.append(time.monotonic())
            training.kill(victim)
            text = f"kill {number} of {kills}: rank {victim} at step {step}, with {len(members)} members"
            if chance.random() < aggregator_kills:
                text += f", and {_kill_one(processes, chance)}"
                disturbed.append(moments[-1])
            if replace:
                training.replace(victim)
            progress(text)
        training.wait_for_members(len(training.workers))
        ended = time.monotonic()
        # The losses of the last steps are compared, so there must be some without faults: on a busy machine too.
        time.sleep(1.0)
        training.wait_for_step(max(_steps(training.processes)) + _LAST_STEPS)
        results = training.stop()
    problems = _compare_digests(training.processes) + _compare_counts(training.processes)
    if len({(result["steps"], result["digest"]) for result in results}) != 1:
        problems.append(f"the members ended differently: {results}")
    times = _times_lost(_steps(training.processes), moments, disturbed, ended)
    steps = results[0]["steps"]
    end, expected, noise = _compare_losses(training.processes, seed, steps)
    if abs(end - expected) > noise:
        problems.append(f"the loss ended at {end:.5f}; rehearsed, it ends at {expected:.5f} ± {noise:.5f}")
    return {
        "kills of workers": len(moments),
        "kills of aggregators": len(disturbed),
        "steps": steps,
        "compared hashes": sum(map(_is_step, (event for each in training.processes for event in each.events))),
        "ms of a step": round(times["step"] * 1000, 1),
        "s lost per kill, median": round(times["median"], 2),
        "s lost per kill, worst": round(times["worst"], 2),
        "s lost, aggregator too": round(times["both"], 2),
        "s lost, aggregator too, worst": round(times["both worst"], 2),
        "the kill that cost most": round(times["worst kill"]),
        "loss": round(end, 5),
        "loss rehearsed": round(expected, 5),
        "noise of the loss": round(noise, 5),
        "seconds": round(time.monotonic() - begin),
        "problems": problems,
        "same": not problems,
    }


def _kill_one(processes: Sequence[AggregatorProcess], chance: random.Random) -> str:
    victim = chance.choice(processes)
    victim.end()
    victim.start()
    return victim.address


def _is_step(event: Event) -> bool:
    return bool(event["event"] == "step")


def _steps(processes: Sequence[WorkerProcess]) -> dict[int, float]:
    """Return when each step was first made by any process."""
    first: dict[int, float] = {}
    for event in (event for each in processes for event in list(each.events) if _is_step(event)):
        first[event["step"]] = min(event["at"], first.get(event["step"], math.inf))
    return first


def _compare_digests(processes: Sequence[WorkerProcess]) -> list[str]:
    """Return for each step after which two processes held different bits what differs."""
    held: dict[int, tuple[str, str]] = {}
    problems = []
    for each in processes:
        name = f"pid {each.process.pid}"
        for event in filter(_is_step, each.events):
            digest, other = held.setdefault(event["step"], (event["digest"], name))
            if digest != event["digest"]:
                problems.append(f"after step {event['step']}, {name} holds other bits than {other}")
    return problems


def _times_lost(
    steps: dict[int, float], kills: Sequence[float], disturbed: Sequence[float], ended: float
) -> dict[str, float]:
    """Return how long a step takes, and what kills cost: what steps took longer, until the next kill."""
    moments = [steps[step] for step in sorted(steps)]
    took = [later - earlier for earlier, later in itertools.pairwise(moments)]
    usual = statistics.median(took)
    lost: dict[bool, list[float]] = {False: [], True: []}
    by_kill: list[float] = []
    for moment, following in itertools.pairwise([*kills, ended]):
        # The step during which the kill happened ends after it.
        begin, end = (bisect.bisect_left(moments, when) - 1 for when in (moment, following))
        late = [each - usual for each in took[max(0, begin) : max(begin + 1, end)] if each > 3 * usual]
        lost[moment in disturbed].append(sum(late))
        by_kill.append(sum(late))
    alone, both = lost[False] or [0.0], lost[True] or [0.0]
    return {
        "step": usual,
        "median": statistics.median(alone),
        "worst": max(alone),
        "both": statistics.median(both),
        "both worst": max(both),
        "worst kill": 1.0 + by_kill.index(max(by_kill)),
    }


def _compare_counts(processes: Sequence[WorkerProcess]) -> list[str]:
    """Return which steps counted fewer ranks than have made them, or more than were members, or differ."""
    steps: dict[int, list[Event]] = {}
    for event in (event for each in processes for event in filter(_is_step, each.events)):
        steps.setdefault(event["step"], []).append(event)
    problems = []
    for step, events in steps.items():
        first = events[0]
        fewest, most = first["counts"]
        if any(event["counts"] != first["counts"] for event in events):
            problems.append(
                f"step {step} counted {[event['counts'] for event in events]} ranks, the fewest and the most"
            )
        elif fewest < len(events) or most > len(first["members"]):
            members = first["members"]
            problems.append(f"step {step} of {members}, made by {len(events)} of them, counted {fewest} to {most}")
    return problems


def _compare_losses(processes: Sequence[WorkerProcess], seed: int, steps: int) -> tuple[float, float, float]:
    """Return the loss at the end, that of a rehearsal with the members of each step, and how far these may be apart."""
    made = {event["step"]: event for each in processes for event in filter(_is_step, each.events)}
    tail = max(10, round(steps * _TAIL))
    end = statistics.fmean(made[step]["loss"] for step in range(max(1, steps - tail + 1), steps + 1))
    expected = statistics.fmean(rehearse(seed, [made[step]["members"] for step in range(1, steps + 1)])[-tail:])
    # In the steps in which ranks were lost, parts of the gradients have those, and others have not.
    return end, expected, 0.05 * expected
