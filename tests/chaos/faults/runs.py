"""Long disturbances of one training, whose result must be that of an undisturbed one of as many steps, bit for bit."""

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

Say = Callable[[str], None]
Report = dict[str, Any]


def kill_aggregators(
    directory: pathlib.Path, kills: int, seed: int, plane: str, say: Say = lambda line: None
) -> Report:
    """kill -9 of either of two aggregators at random moments of a training of three workers.

    Args:
        directory: Where logs are written.
        kills: How often. Each is followed by the start of a new process on the same address.
        seed: Of the moments and the victims.
        plane: How large payloads cross.
        say: Takes a line after each kill.

    Returns:
        What was counted, by name; "same" is whether the result is that of the undisturbed run.
    """
    chance = random.Random(seed)
    begin = time.monotonic()
    with (
        aggregators(directory, 2) as pair,
        training(directory, [a.address for a in pair], None, plane=plane) as trained,
    ):
        trained.wait_for_step(1)
        for number in range(1, kills + 1):
            time.sleep(chance.uniform(0, 0.8))
            before = trained.steps
            victim = chance.choice(pair)
            victim.end()
            victim.start()
            say(f"kill {number} of {kills}: {victim.address} at step {before}")
        return _compare(directory, trained, begin, kills=kills)


def harm_connections(
    directory: pathlib.Path, harms: int, seed: int, plane: str, say: Say = lambda line: None
) -> Report:
    """A proxy before each aggregator that cuts at random bytes and delays all the time, and now and then falls silent.

    Args:
        directory: Where logs are written.
        harms: How often, at a random moment, all connections of one proxy are cut, or it forwards nothing for 0.5 to 4
            seconds without closing anything. Probes find that out after 2 seconds.
        seed: Of the moments, the proxies and what they do.
        plane: How large payloads cross.
        say: Takes a line after each of them.

    Returns:
        As kill_aggregators.
    """
    chance = random.Random(seed)
    begin = time.monotonic()
    done = {"cut": 0, "silence": 0}
    with (
        aggregators(directory, 2, "--keepalive", "1s") as pair,
        proxies(pair, seed) as between,
    ):
        for proxy in between:
            proxy.cut_after = (1000, 300_000 if plane == "shm" else 6_000_000)
            proxy.delay_seconds = 0.001
        with training(directory, [p.address for p in between], None, keepalive=1.0, plane=plane) as trained:
            trained.wait_for_step(1)
            for number in range(1, harms + 1):
                time.sleep(chance.uniform(0, 1.0))
                before = trained.steps
                proxy = chance.choice(between)
                kind = chance.choice(list(done))
                if kind == "cut":
                    proxy.cut()
                else:
                    proxy.stall()
                    time.sleep(chance.uniform(0.5, 4.0))
                    proxy.flow()
                done[kind] += 1
                say(f"{kind} {number} of {harms} at step {before}")
            connections = sum(proxy.connections for proxy in between)
            cuts = sum(proxy.cuts for proxy in between)
            report = {
                "cuts at a random byte": cuts,
                "cuts at a random moment": done["cut"],
                "silences": done["silence"],
            }
            return _compare(directory, trained, begin, **report, connections=connections)


@contextlib.contextmanager
def proxies(behind: list[AggregatorProcess], seed: int = 0) -> Iterator[list[Proxy]]:
    """A proxy before each aggregator, until the end of the block."""
    with contextlib.ExitStack() as stack:
        made = []
        for number, aggregator in enumerate(behind):
            made.append(Proxy(aggregator.address, aggregator.data_port, seed + number))
            stack.callback(made[-1].close)
        yield made


def _compare(directory: pathlib.Path, trained: Training, begin: float, **counted: int) -> Report:
    trained.stop()
    result = trained.result()
    reconnections = sum(worker.log.count("is connected to aggregator") for worker in trained.workers)
    counted |= {"reconnections": reconnections, "steps": result["steps"]}
    counted["seconds"] = round(time.monotonic() - begin)
    return counted | {"same": result == undisturbed(directory / "undisturbed", result["steps"])}
