"""A history of random steps: drawn from a seed, executed, and shrunk if it fails."""

import dataclasses
import traceback
from random import Random

from simulation.counters import Counters
from simulation.elastic_steps import ELASTIC_STEPS
from simulation.endings import begin_ending, finish
from simulation.fleet import Fleet
from simulation.plan import Ending, Plan
from simulation.sizes import sizes_of
from simulation.steps import STEPS

Step = tuple[str, int]
"""A step's name, and the seed of its random numbers."""


@dataclasses.dataclass(frozen=True)
class History:
    """The plan and the steps of one history.

    Attributes:
        seed: The seed from which it was drawn.
        plan: Sizes, faults and ending.
        steps: The steps in order. After them all ranks catch up and leave.
    """

    seed: int
    plan: Plan
    steps: tuple[Step, ...]

    @classmethod
    def draw(
        cls, seed: int, *, relayed: bool | None = None, elastic: bool = False, direct: bool | None = None
    ) -> "History":
        """Draw a random history.

        Args:
            seed: Determines the history.
            relayed: Whether it has relays; None: one of three has.
            elastic: Whether its job is elastic.
            direct: Whether payloads follow their message, on data connections; None: in every second history.
        """
        random = Random(seed)
        plan = Plan.draw(random, relayed=seed % 3 == 0 if relayed is None else relayed)
        if elastic:
            plan = plan.as_elastic(random)
        if seed % 2 if direct is None else direct:
            plan = plan.as_direct(Random(seed))
        names = random.choices(list(plan.steps), list(plan.steps.values()), k=plan.length)
        if plan.ending is not Ending.ALL_LEAVE:
            first = plan.ending in (Ending.NO_KEPT_SUMS, Ending.LATE_JOIN)
            names.insert(0 if first else random.randint(0, len(names)), "ending")
        return cls(seed, plan, (("begin", 0), *((name, random.getrandbits(32)) for name in names)))


class Failure(Exception):
    """An assertion failed in a history, or the code under test raised an exception.

    Attributes:
        history: The history that failed.
        kind: A short text that distinguishes this failure from others: the exception and the function.
        report: Description of what happened.
    """

    def __init__(self, history: History, kind: str, report: str) -> None:
        self.history = history
        self.kind = kind
        self.report = report
        super().__init__(report)


def run(history: History, counters: Counters | None = None) -> None:
    """Execute a history.

    Args:
        history: The history.
        counters: Counters to update.

    Raises:
        Failure: The history failed.
    """
    counters = Counters() if counters is None else counters
    report: list[str] = []
    with sizes_of(history.plan):
        fleet = Fleet(history.plan, counters, report.append)
        try:
            for name, seed in history.steps:
                report.append(name)
                _execute(fleet, name, Random(seed))
                fleet.check()
            report.append("finish")
            finish(fleet, Random(history.seed))
        except Exception as error:
            # Any exception is a failure of the history: a wrong implementation may raise KeyError, for instance.
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {where.name}"
            text = [f"seed {history.seed}: {type(error).__name__}: {error}", f"  {history.plan}", *report]
            text += [*fleet.describe(), "".join(traceback.format_tb(error.__traceback__)[-4:])]
            raise Failure(history, kind, "\n".join(text)) from error
    counters["histories"] += 1
    counters["relayed"] += bool(history.plan.relays)
    counters["direct"] += bool(history.plan.direct)
    counters["levels"] += any(relay.above is not None for relay in history.plan.relays)
    counters["rounds"] += sum(min(counts[: history.plan.workers]) for counts in fleet.counts.values())
    counters["deliveries"] += fleet.oracle.deliveries
    counters["failures"] += fleet.oracle.failures
    counters[f"ending: {history.plan.ending.value}"] += 1


def shrink(failure: Failure, attempts: int = 400) -> Failure:
    """Search for a shorter history with a failure of the same kind. Return the shortest one found."""
    best = failure
    size = max(1, len(best.history.steps) // 2)
    while size and attempts > 0:
        start = 0
        while start < len(best.history.steps) and attempts > 0:
            kept = best.history.steps[:start] + best.history.steps[start + size :]
            attempts -= 1
            try:
                run(dataclasses.replace(best.history, steps=kept))
            except Failure as shorter:
                if shorter.kind == best.kind:
                    best = shorter
                    continue
            start += size
        size //= 2
    return best


def _execute(fleet: Fleet, name: str, random: Random) -> None:
    if name == "begin":
        # Connect the workers to the aggregators, except absent ranks.
        fleet.settle(random, reconnect=True)
    elif name == "ending":
        begin_ending(fleet, random)
    else:
        (STEPS | ELASTIC_STEPS)[name](fleet, random)
