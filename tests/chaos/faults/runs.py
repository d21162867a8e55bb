"""Trainings under repeated faults, whose results must match an undisturbed run of the same length bit for bit."""

import contextlib
import os
import pathlib
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from faults.aggregators import AggregatorProcess, aggregators
from faults.proxy import Proxy
from faults.training import Training, hosts, training, undisturbed
from faults.watching import find_jobs, kinds_of_files, open_files

PATIENCE_SECONDS = 60.0

#: The faults of a training with relays: who they hit, and what happens to them.
_RELAY_FAULTS = [
    (whom, what) for whom in ("relay", "owner", "relay and owner") for what in ("killed", "told to stop", "cut")
]

#: Files that a process opens with its first connection and keeps.
_OWN_FILES = 4

Progress = Callable[[str], None]
Report = dict[str, Any]


def kill_aggregators(
    directory: pathlib.Path, kills: int, seed: int, plane: str, progress: Progress = lambda line: None
) -> Report:
    """Kill one of two aggregators with SIGKILL at random moments of a training with three workers.

    Args:
        directory: Directory for logs.
        kills: Number of kills. After each kill a new process starts on the same address.
        seed: Seed for the times and the targets.
        plane: Plane for large payloads.
        progress: Called with a line of text after each kill.

    Returns:
        Counts by name. "same" says whether the result equals that of the undisturbed run.
    """
    chance = random.Random(seed)
    begin = time.monotonic()
    with (
        aggregators(directory, 2) as pair,
        training(directory, [a.address for a in pair], None, plane=plane) as under_test,
    ):
        under_test.wait_for_step(1)
        for number in range(1, kills + 1):
            time.sleep(chance.uniform(0, 0.8))
            before = under_test.steps
            victim = chance.choice(pair)
            victim.end()
            victim.start()
            progress(f"kill {number} of {kills}: {victim.address} at step {before}")
        return _compare(directory, under_test, begin, {"kills": kills})


def disturb_connections(
    directory: pathlib.Path,
    faults: int,
    seed: int,
    plane: str,
    progress: Progress = lambda line: None,
    *,
    cuts: int = 0,
) -> Report:
    """Put a proxy in front of each aggregator that delays data, cuts connections at random bytes and stalls at times.

    Args:
        directory: Directory for logs.
        faults: Number of faults besides the cuts at random bytes. Each one, at a random moment, cuts all connections of
            one proxy, or stalls them for 0.5 to 4 seconds without closing them. Keepalive probes notice a stall after 2
            seconds.
        seed: Seed for the times, the proxies and the kinds of faults.
        plane: Plane for large payloads.
        progress: Called with a line of text after each fault.
        cuts: The training goes on until there were so many cuts at random bytes.

    Returns:
        See kill_aggregators.
    """
    chance = random.Random(seed)
    begin = time.monotonic()
    done = {"cut": 0, "silence": 0}
    with (
        aggregators(directory, 2, "--keepalive", "1s") as pair,
        proxies(pair, seed) as fronts,
    ):
        for proxy in fronts:
            proxy.cut_after = (1000, 300_000 if plane == "shm" else 6_000_000)
            proxy.delay_seconds = 0.001
        with training(directory, [p.address for p in fronts], None, keepalive=1.0, plane=plane) as under_test:
            under_test.wait_for_step(1)
            for number in range(1, faults + 1):
                time.sleep(chance.uniform(0, 1.0))
                before = under_test.steps
                proxy = chance.choice(fronts)
                kind = chance.choice(list(done))
                if kind == "cut":
                    proxy.cut()
                else:
                    proxy.stall()
                    time.sleep(chance.uniform(0.5, 4.0))
                    proxy.flow()
                done[kind] += 1
                progress(f"{kind} {number} of {faults} at step {before}")
            deadline = time.monotonic() + PATIENCE_SECONDS
            while sum(proxy.cuts for proxy in fronts) < cuts and time.monotonic() < deadline:
                # Proxies do not report cuts.
                time.sleep(0.02)
            connections = sum(proxy.connections for proxy in fronts)
            cuts = sum(proxy.cuts for proxy in fronts)
            report = {
                "cuts at a random byte": cuts,
                "cuts at a random moment": done["cut"],
                "silences": done["silence"],
            }
            return _compare(directory, under_test, begin, report | {"connections": connections})


def disturb_relays(
    directory: pathlib.Path, faults: int, seed: int, plane: str, progress: Progress = lambda line: None
) -> Report:
    """Kill, stop and cut off relays and owners at random moments of a training on two hosts with two workers each.

    Each host has a relay, and two further aggregators own the shards. A proxy is in front of each of the four.

    Args:
        directory: Directory for logs.
        faults: Number of faults. After each one, what has ended is started again on its address.
        seed: Seed for the times, the targets and the kinds of faults.
        plane: Plane for large payloads between workers and relays.
        progress: Called with a line of text after each fault.

    Returns:
        See kill_aggregators. "same" also says that nothing is left of the training; "left" says what is.
    """
    chance = random.Random(seed)
    begin = time.monotonic()
    done = {f"{whom} {what}": 0 for whom, what in _RELAY_FAULTS}
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="psum-chaos-") as shared,
        aggregators(directory, 4, "--grace", "2s", "--shm-directory", shared) as four,
        proxies(four, seed) as fronts,
    ):
        addresses = [proxy.address for proxy in fronts]
        files = [open_files(each.process.pid) for each in four]
        settings = {"each": hosts(addresses[:2]), "plane": plane, "shm_directory": shared}
        with training(directory, addresses[2:], None, **settings) as under_test:
            under_test.wait_for_step(1)
            for number in range(1, faults + 1):
                time.sleep(chance.uniform(0, 0.8))
                before = under_test.steps
                whom, what = chance.choice(_RELAY_FAULTS)
                pair = {"relay": chance.choice((0, 1)), "owner": chance.choice((2, 3))}
                victims = [index for role, index in pair.items() if role in whom]
                match what:
                    case "cut":
                        for victim in victims:
                            fronts[victim].cut()
                    case "killed":
                        for victim in victims:
                            four[victim].process.kill()
                        for victim in victims:
                            four[victim].end()
                            four[victim].start()
                    case "told to stop":
                        for victim in victims:
                            four[victim].process.terminate()
                        for victim in victims:
                            status = four[victim].process.wait(PATIENCE_SECONDS)
                            assert status == 0, four[victim].log[-2000:]
                            four[victim].start()
                done[f"{whom} {what}"] += 1
                progress(f"{whom} {what} {number} of {faults} at step {before}")
            report = _compare(directory, under_test, begin, done, relays=True)
        report["left"] = _left_behind(four, files, under_test, shared)
        report["same"] = report["same"] and not report["left"]
        return report


def _left_behind(aggregators: list[AggregatorProcess], files: list[int], under_test: Training, shared: str) -> str:
    """Describe what is left after a training, and end the aggregators. Empty: nothing is left.

    Args:
        aggregators: The aggregators, which run.
        files: How many open files each had before the training.
        under_test: The training, which has ended.
        shared: The directory for shared memory.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        left = [f"aggregator {a.address} has job {name!r}" for a in aggregators for name in find_jobs(a.address)]
        for aggregator, before in zip(aggregators, files, strict=True):
            now = open_files(aggregator.process.pid)
            if now > before + _OWN_FILES:
                kinds = kinds_of_files(aggregator.process.pid)
                left.append(f"aggregator {aggregator.address} has {now} open files, {before} before: {kinds}")
        left += [f"worker {w.process.pid} runs" for w in under_test.workers if w.process.poll() is None]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    for aggregator in aggregators:
        if (status := aggregator.end(signal.SIGTERM)) != 0:
            left.append(f"aggregator {aggregator.address} ended with status {status}: {aggregator.log[-2000:]}")
    return "; ".join(left + [f"{shared} has {name}" for name in os.listdir(shared)])


@contextlib.contextmanager
def proxies(targets: list[AggregatorProcess], seed: int = 0) -> Iterator[list[Proxy]]:
    """Run a proxy in front of each aggregator until the end of the block."""
    with contextlib.ExitStack() as stack:
        made = []
        for number, aggregator in enumerate(targets):
            made.append(Proxy(aggregator.address, aggregator.data_port, seed + number))
            stack.callback(made[-1].close)
        yield made


def _compare(
    directory: pathlib.Path, under_test: Training, begin: float, counted: dict[str, int], *, relays: bool = False
) -> Report:
    under_test.stop()
    result = under_test.result()
    reconnections = sum(worker.log.count("is connected to aggregator") for worker in under_test.workers)
    counted = counted | {"reconnections": reconnections, "steps": result["steps"]}
    counted["seconds"] = round(time.monotonic() - begin)
    return counted | {"same": result == undisturbed(directory / "undisturbed", result["steps"], relays=relays)}
