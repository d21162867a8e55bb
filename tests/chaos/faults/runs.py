"""Trainings under repeated faults, whose results must match an undisturbed run of the same length bit for bit."""

import contextlib
import pathlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from faults.aggregators import AggregatorProcess, aggregators
from faults.proxy import Proxy
from faults.training import Training, training, undisturbed

PATIENCE_SECONDS = 60.0

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
        return _compare(directory, under_test, begin, kills=kills)


def disturb_connections(
    directory: pathlib.Path, faults: int, seed: int, plane: str, progress: Progress = lambda line: None
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
            connections = sum(proxy.connections for proxy in fronts)
            cuts = sum(proxy.cuts for proxy in fronts)
            report = {
                "cuts at a random byte": cuts,
                "cuts at a random moment": done["cut"],
                "silences": done["silence"],
            }
            return _compare(directory, under_test, begin, **report, connections=connections)


@contextlib.contextmanager
def proxies(targets: list[AggregatorProcess], seed: int = 0) -> Iterator[list[Proxy]]:
    """Run a proxy in front of each aggregator until the end of the block."""
    with contextlib.ExitStack() as stack:
        made = []
        for number, aggregator in enumerate(targets):
            made.append(Proxy(aggregator.address, aggregator.data_port, seed + number))
            stack.callback(made[-1].close)
        yield made


def _compare(directory: pathlib.Path, under_test: Training, begin: float, **counted: int) -> Report:
    under_test.stop()
    result = under_test.result()
    reconnections = sum(worker.log.count("is connected to aggregator") for worker in under_test.workers)
    counted |= {"reconnections": reconnections, "steps": result["steps"]}
    counted["seconds"] = round(time.monotonic() - begin)
    return counted | {"same": result == undisturbed(directory / "undisturbed", result["steps"])}
