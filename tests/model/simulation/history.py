"""One history: drawn from a seed, carried out, and made short where it fails."""

import dataclasses
import traceback
from random import Random

from simulation.counters import Counters
from simulation.endings import doom, finish
from simulation.fleet import Fleet, sizes_of
from simulation.plan import Ending, Plan
from simulation.steps import STEPS

Step = tuple[str, int]
"""Its name, and the seed of the numbers that it is carried out with."""


@dataclasses.dataclass(frozen=True)
class History:
    """What is to happen.

    Attributes:
        seed: From which it was drawn.
        plan: Its make-up.
        steps: What is done, before all ranks do the same and leave.
    """

    seed: int
    plan: Plan
    steps: tuple[Step, ...]

    @classmethod
    def draw(cls, seed: int) -> "History":
        """A history by chance."""
        random = Random(seed)
        plan = Plan.draw(random)
        names = random.choices(list(plan.steps), list(plan.steps.values()), k=plan.length)
        if plan.ending is not Ending.ALL_LEAVE:
            first = plan.ending in (Ending.FORGETFUL, Ending.LATENESS)
            names.insert(0 if first else random.randint(0, len(names)), "doom")
        return cls(seed, plan, (("begin", 0), *((name, random.getrandbits(32)) for name in names)))


class Failure(Exception):
    """Something did not hold.

    Attributes:
        history: In which history.
        kind: What, in few words, to tell it from other failures.
        account: What happened, for people.
    """

    def __init__(self, history: History, kind: str, account: str) -> None:
        self.history = history
        self.kind = kind
        self.account = account
        super().__init__(account)


def run(history: History, tally: Counters | None = None) -> None:
    """Carries a history out.

    Args:
        history: The history.
        tally: Where to count.

    Raises:
        Failure: Something did not hold.
    """
    tally = Counters() if tally is None else tally
    account: list[str] = []
    with sizes_of(history.plan):
        fleet = Fleet(history.plan, tally, account.append)
        try:
            for name, seed in history.steps:
                account.append(name)
                _carry_out(fleet, name, Random(seed))
                fleet.check()
            account.append("finish")
            finish(fleet, Random(history.seed))
        except Exception as error:
            # Whatever an implementation raises that is wrong is a failure of the history, a KeyError too.
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {where.name}"
            text = [f"seed {history.seed}: {type(error).__name__}: {error}", f"  {history.plan}", *account]
            text += [*fleet.describe(), "".join(traceback.format_tb(error.__traceback__)[-4:])]
            raise Failure(history, kind, "\n".join(text)) from error
    tally["histories"] += 1
    tally["rounds"] += sum(min(counts) for counts in fleet.counts.values())
    tally["deliveries"] += fleet.ledger.deliveries
    tally["failures"] += fleet.ledger.failures
    tally[f"ending: {history.plan.ending.value}"] += 1


def shrink(failure: Failure, attempts: int = 400) -> Failure:
    """A failure of the same kind in a history that is as short as was found within so many attempts."""
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


def _carry_out(fleet: Fleet, name: str, random: Random) -> None:
    if name == "begin":
        # Workers reach the aggregators, all or some.
        fleet.settle(random, reconnect=True)
    elif name == "doom":
        doom(fleet, random)
    else:
        STEPS[name](fleet, random)
