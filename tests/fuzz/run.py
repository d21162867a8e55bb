"""Feeds inputs to the targets and checks that memory does not grow."""

import asyncio
import gc
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from tests.fuzz.aggregator import AggregatorTarget
from tests.fuzz.client import ClientTarget
from tests.fuzz.data_connection import DataConnectionTarget
from tests.fuzz.framing import FramingTarget
from tests.fuzz.harness import Case, LogMonitor, Target, ViolationError
from tests.fuzz.relay import RelayTarget
from tests.fuzz.server import ServerTarget
from tests.fuzz.session import SessionTarget

#: Each target's share of 1000 inputs. The targets with real connections (client, server, relay) are the slowest by far.
#: client is a whole client, data_connection one data connection.
SHARES: Final = {
    "framing": 350,
    "data_connection": 50,
    "session": 280,
    "aggregator": 310,
    "client": 4,
    "server": 6,
    "relay": 6,
}

_MAKERS: Final[dict[str, Callable[[LogMonitor], Target]]] = {
    "framing": lambda log: FramingTarget(),
    "data_connection": lambda log: DataConnectionTarget(),
    "session": lambda log: SessionTarget(),
    "aggregator": AggregatorTarget,
    "client": ClientTarget,
    "server": ServerTarget,
    "relay": RelayTarget,
}

#: Fraction of a run that warms up caches and the allocator's arenas.
_WARM_UP: Final = 0.2

#: Allowed growth of resident memory after the warm-up. Some MiB are normal: the fuzzer talks to the server with gRPC's
#: asyncio client, which keeps some kilobytes of each broken call.
_GROWTH_BYTES: Final = 16 << 20

#: With fewer inputs, growth cannot be distinguished from warm-up.
_MIN_INPUTS_FOR_GROWTH: Final = 50_000

#: Number of blocks in a run. After each block the targets check for leftovers.
_BLOCKS: Final = 100
_FEW_BLOCKS: Final = 5


class FuzzRun:
    """One fuzzing run.

    Args:
        inputs: Number of inputs.
        seed: Seed of all inputs.
        targets: Names of the targets.
        progress: Called with lines about the progress.
    """

    def __init__(self, inputs: int, seed: int, targets: Sequence[str], progress: Callable[[str], None]) -> None:
        self._seed = seed
        self._progress = progress
        self._log = LogMonitor()
        self._targets = {name: _MAKERS[name](self._log) for name in targets}
        whole = sum(SHARES[name] for name in targets)
        self._inputs = {name: inputs * SHARES[name] // whole for name in targets}
        self._inputs[targets[0]] += inputs - sum(self._inputs.values())
        self._fed = dict.fromkeys(targets, 0)
        self.outcomes: Counter[str] = Counter()
        """Number of results of inputs, by kind."""
        self.grown_bytes = 0
        """Growth of resident memory after the warm-up."""

    async def feed(self, *, first: int = 0) -> None:
        """Feed all inputs, numbered from `first`.

        Raises:
            ViolationError: A target violated a rule. The case is attached as a note.
        """
        root, logger = logging.getLogger(), logging.getLogger("psum")
        level, propagate = logger.level, logger.propagate
        for log in (root, logger):
            log.addHandler(self._log)
        logger.setLevel(logging.DEBUG)
        # Keep the flood of log lines from other handlers.
        logger.propagate = False
        started: list[Target] = []
        try:
            for target in self._targets.values():
                await target.start()
                started.append(target)
            await self._feed_blocks(first)
        finally:
            for target in started:
                await target.stop()
            for log in (root, logger):
                log.removeHandler(self._log)
            logger.setLevel(level)
            logger.propagate = propagate
        self._log.check()
        for target in self._targets.values():
            self.outcomes += target.outcomes

    async def _feed_blocks(self, first: int) -> None:
        begin, before = time.perf_counter(), resident_bytes()
        warm = before
        blocks = _BLOCKS if sum(self._inputs.values()) >= 100 * _BLOCKS else _FEW_BLOCKS
        for block in range(1, blocks + 1):
            for name, target in self._targets.items():
                if self._fed[name] == self._inputs[name] * block // blocks:
                    continue
                until = self._inputs[name] * block // blocks
                while self._fed[name] < until:
                    await self._feed_one(Case(name, self._seed, first + self._fed[name]), target)
                    self._fed[name] += 1
                await target.settle()
            gc.collect()
            now = resident_bytes()
            if block == int(blocks * _WARM_UP):
                warm = now
            fed = sum(self._fed.values())
            if block * 10 % blocks == 0:
                seconds = time.perf_counter() - begin
                self._progress(
                    f"{fed} inputs in {seconds:.0f} s, {fed / seconds:.0f} a second, resident memory"
                    f" {before / 2**20:.0f} MiB before, {warm / 2**20:.0f} MiB warm, {now / 2**20:.0f} MiB now"
                )
        self.grown_bytes = now - warm

    async def _feed_one(self, case: Case, target: Target) -> None:
        try:
            await target.feed(case.random())
        except BaseException as error:
            error.add_note(f"case {case}; repeat it with scripts/fuzz --case {case}")
            raise


async def run(inputs: int, seed: int, targets: Sequence[str], progress: Callable[[str], None]) -> Counter[str]:
    """Feed inputs to targets. Return the number of results by kind. Growth is checked only in runs of many inputs.

    Raises:
        ViolationError: A target violated a rule, or memory grew.
    """
    fuzzing = FuzzRun(inputs, seed, targets, progress)
    await fuzzing.feed()
    if inputs >= _MIN_INPUTS_FOR_GROWTH and fuzzing.grown_bytes > _GROWTH_BYTES:
        raise ViolationError(f"resident memory grew by {fuzzing.grown_bytes} bytes after the warm-up")
    return fuzzing.outcomes


async def run_case(case: Case) -> None:
    """Feed one input to a new target."""
    await FuzzRun(1, case.seed, [case.target], print).feed(first=case.number)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_in_new_loop(inputs: int, seed: int, targets: Sequence[str] = tuple(SHARES)) -> Counter[str]:
    """Run in a new event loop and without output, for tests. See run."""
    return asyncio.run(run(inputs, seed, targets, lambda line: None))
