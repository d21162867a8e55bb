"""Feeds inputs to all targets, and sees to it that nothing grows."""

import asyncio
import gc
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from tests.fuzz.aggregator import AggregatorTarget
from tests.fuzz.cases import Case, LogWatch, Target, ViolationError
from tests.fuzz.framing import FramingTarget
from tests.fuzz.link import LinkTarget
from tests.fuzz.pipe import PipeTarget
from tests.fuzz.server import ServerTarget
from tests.fuzz.session import SessionTarget

#: How many of a thousand inputs each target gets. What is behind a real connection takes the longest by far.
SHARES: Final = {"framing": 350, "pipe": 50, "session": 280, "aggregator": 310, "link": 4, "server": 6}

_MAKERS: Final[dict[str, Callable[[LogWatch], Target]]] = {
    "framing": lambda log: FramingTarget(),
    "pipe": lambda log: PipeTarget(),
    "session": lambda log: SessionTarget(),
    "aggregator": AggregatorTarget,
    "link": LinkTarget,
    "server": ServerTarget,
}

#: How much of a run is for warming up: caches and the allocator's arenas fill.
_WARM_UP: Final = 0.2

#: By how much resident memory may grow after that. It does by some MiB: gRPC's asyncio client, by which the fuzzer
#: talks to the server, keeps some kilobytes of each call that broke.
_GROWTH_BYTES: Final = 16 << 20

#: Below this, what is still warming up is all that can be seen.
_TELLING_INPUTS: Final = 50_000

#: How often in a run it is looked at whether anything is left.
_BLOCKS: Final = 100
_FEW_BLOCKS: Final = 5


class Run:
    """Many inputs.

    Args:
        inputs: How many.
        seed: Decides them all.
        targets: Their names.
        say: Takes lines for people.
    """

    def __init__(self, inputs: int, seed: int, targets: Sequence[str], say: Callable[[str], None]) -> None:
        self._seed = seed
        self._say = say
        self._log = LogWatch()
        self._targets = {name: _MAKERS[name](self._log) for name in targets}
        whole = sum(SHARES[name] for name in targets)
        self._inputs = {name: inputs * SHARES[name] // whole for name in targets}
        self._inputs[targets[0]] += inputs - sum(self._inputs.values())
        self._fed = dict.fromkeys(targets, 0)
        self.outcomes: Counter[str] = Counter()
        """What came of the inputs, by kind."""
        self.grown_bytes = 0
        """By how much resident memory grew after the warm-up."""

    async def feed(self, *, first: int = 0) -> None:
        """Feeds them all, beginning with this number.

        Raises:
            ViolationError: With the case as a note.
        """
        root, logger = logging.getLogger(), logging.getLogger("psum")
        level, propagate = logger.level, logger.propagate
        for log in (root, logger):
            log.addHandler(self._log)
        logger.setLevel(logging.DEBUG)
        # A million lines are of no use to anybody else.
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
                self._say(
                    f"{fed} inputs in {seconds:.0f} s, {fed / seconds:.0f} a second, resident memory"
                    f" {before / 2**20:.0f} MiB before, {warm / 2**20:.0f} MiB warm, {now / 2**20:.0f} MiB now"
                )
        self.grown_bytes = now - warm

    async def _feed_one(self, case: Case, target: Target) -> None:
        try:
            await target.feed(case.random())
        except BaseException as error:
            error.add_note(f"case {case}; scripts/fuzz --case {case} feeds it again")
            raise


async def run(inputs: int, seed: int, targets: Sequence[str], say: Callable[[str], None]) -> Counter[str]:
    """Feeds inputs to targets, and returns what came of them. That memory grows is only seen in thousands of them.

    Raises:
        ViolationError: The product did what it must not do, or memory grows.
    """
    fuzzing = Run(inputs, seed, targets, say)
    await fuzzing.feed()
    if inputs >= _TELLING_INPUTS and fuzzing.grown_bytes > _GROWTH_BYTES:
        raise ViolationError(f"resident memory has grown by {fuzzing.grown_bytes} bytes after the warm-up")
    return fuzzing.outcomes


async def run_case(case: Case) -> None:
    """Feeds one input, to a target that is as new."""
    await Run(1, case.seed, [case.target], print).feed(first=case.number)


def resident_bytes() -> int:
    """The memory that this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_here(inputs: int, seed: int, targets: Sequence[str] = tuple(SHARES)) -> Counter[str]:
    """The same in an event loop of its own, without a word; for tests."""
    return asyncio.run(run(inputs, seed, targets, lambda line: None))
