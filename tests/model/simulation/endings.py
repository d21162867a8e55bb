"""How histories end: what may go wrong for good, and what must hold when all is over."""

from random import Random

from psum.client import (
    AbortedError,
    DisagreementError,
    RoundTimeoutError,
    TakenError,
    WorkerLostError,
)
from simulation import steps
from simulation.fleet import ROUND_TIMEOUT_SECONDS, WORKER_TIMEOUT_SECONDS, Fleet, Frozen
from simulation.plan import Ending


def doom(fleet: Fleet, random: Random) -> None:
    """What the history comes to begins: from here on operations may fail, for the reasons that there are."""
    rank = random.randrange(fleet.plan.workers)
    worker, ledger = fleet.workers[rank], fleet.ledger
    ending = fleet.plan.ending
    if ending is not Ending.ALL_LEAVE:
        fleet.log(f"  rank {rank}")
    match ending:
        case Ending.DEATH:
            fleet.kill_worker(rank)
            ledger.excuse(WorkerLostError, RoundTimeoutError)
        case Ending.REPLACEMENT:
            fleet.kill_worker(rank)
            ledger.excuse(WorkerLostError, RoundTimeoutError, TakenError, DisagreementError)
            if random.random() < 0.7:
                # Else the old process's end is not known when the new one comes.
                for index, aggregator in enumerate(fleet.aggregators):
                    for connection in list(aggregator.connections) if aggregator is not None else ():
                        if connection.rank == rank:
                            fleet.aggregators[index].lose(connection, fleet.now)  # type: ignore[union-attr]
            fleet.replace_worker(rank)
        case Ending.TERMINATION:
            ledger.excuse(WorkerLostError, RoundTimeoutError, TakenError, DisagreementError)
            fleet.terminate_worker(rank, random)
            if random.random() < 0.6:
                fleet.replace_worker(rank)
        case Ending.ABORT:
            place = random.choice(fleet.places())
            if fleet.reserve(rank, place, 0):
                ledger.excuse(AbortedError, RoundTimeoutError, place=place)
                ticket, _ = fleet.reserved[rank].pop()
                ledger.forbid(place, ticket.round)
                ticket.abort("it was not to be")
                worker.submit(fleet.now)
        case Ending.DESERTION:
            ledger.excuse(WorkerLostError, RoundTimeoutError)
            fleet.leavers.add(rank)
        case Ending.LATENESS:
            ledger.excuse(WorkerLostError, RoundTimeoutError)
            _come_late(fleet, random)
        case Ending.STALL:
            ledger.excuse(RoundTimeoutError)
            steps.use(fleet, random)
            place = random.choice(fleet.places())
            for other in range(fleet.plan.workers):
                fleet.reserve(other, place, 0)
                while other != rank and fleet.reserved[other]:
                    fleet.start(other, 0)
            _wait(fleet, random, ROUND_TIMEOUT_SECONDS + 10)
        case Ending.FORGETFUL:
            ledger.excuse(AbortedError, RoundTimeoutError)


def finish(fleet: Fleet, random: Random) -> None:
    """All ranks do what the others did, and leave; all that was started ends, rightly; nothing is left."""
    fleet.absent.clear()
    if not all(worker.joined for worker in fleet.workers):
        fleet.settle(random, reconnect=True)
    steps.catch_up(fleet, random)
    if fleet.plan.ending is Ending.ALL_LEAVE and random.random() < 0.7:
        _leave_one_by_one(fleet, random)
    fleet.settle(random, reconnect=True)
    if fleet.ledger.strict:
        assert not fleet.ledger.open, f"nothing moves any more, and {len(fleet.ledger.open)} operations wait"
    else:
        _wait(fleet, random, WORKER_TIMEOUT_SECONDS + ROUND_TIMEOUT_SECONDS + 20)
        assert not fleet.ledger.open, f"in spite of all time-outs {len(fleet.ledger.open)} operations wait"
    fleet.check()

    fleet.leavers.update(range(fleet.plan.workers))
    for _ in range(20):
        fleet.settle(random, reconnect=True)
        if all(worker.gone for worker in fleet.workers):
            break
        fleet.pass_time(0.5)
    assert all(worker.gone for worker in fleet.workers), "goodbye was not answered"
    # What is remembered of a job that failed is forgotten then.
    _wait(fleet, random, 3 * WORKER_TIMEOUT_SECONDS)
    for index, aggregator in enumerate(fleet.aggregators):
        if aggregator is not None:
            left = list(aggregator.registry.jobs.values())
            assert not left, f"aggregator {index} still has {left} when all workers are gone"
            assert aggregator.registry.budget.reserved_bytes == 0, f"aggregator {index} keeps memory for nobody"
            assert not aggregator.lines


def _come_late(fleet: Fleet, random: Random) -> None:
    """Some or all of those who are there leave; then the absent rank comes, and hears of it when it uses a key."""
    present = [rank for rank in range(fleet.plan.workers) if rank not in fleet.absent]
    gone = random.sample(present, random.randint(1, len(present)))
    fleet.leavers.update(gone)
    for _ in range(20):
        fleet.settle(random, reconnect=True)
        if all(fleet.workers[rank].gone for rank in gone):
            break
        fleet.pass_time(0.5)
    fleet.pass_time(random.choice((0.0, 5.0, 80.0)))
    late, fleet.absent = fleet.absent, set()
    fleet.settle(random, reconnect=True)
    for rank in late:
        for place in fleet.places():
            assert fleet.reserve(rank, place, 0)
        while fleet.reserved[rank]:
            fleet.start(rank, 0)
    fleet.settle(random)
    assert not fleet.ledger.open, f"rank {late} came late, and waits for ranks that have left"


def _leave_one_by_one(fleet: Fleet, random: Random) -> None:
    """Workers leave when they have what they wanted, while others still wait for it and connections break."""
    faults = [name for name in ("cut", "restart", "drain", "take_over", "reconnect") if name in fleet.plan.steps]
    behind: Frozen = frozenset()
    if "restart" in faults:
        # Some lack the last sums when others leave, and have them from nobody else when the aggregator is killed.
        behind = {("receive", r, a) for r, a in fleet.pairs if random.random() < 0.4}
        fleet.settle(random, behind)
        steps.restart(fleet, random)
    for _ in range(random.randint(1, 12)):
        if random.random() < 0.5:
            steps.some_moves(fleet, random, 60, behind)
        else:
            steps.moves(fleet, random)
        for rank, worker in enumerate(fleet.workers):
            if not worker.busy and random.random() < 0.4:
                fleet.leavers.add(rank)
        if faults and random.random() < 0.3:
            name = random.choice(faults)
            fleet.log(f"  {name} while workers leave")
            steps.STEPS[name](fleet, random)


def _wait(fleet: Fleet, random: Random, seconds: float) -> None:
    """Time passes, and all that moves does."""
    until = fleet.now + seconds
    while fleet.now < until:
        fleet.settle(random, reconnect=True)
        fleet.pass_time(5.0)
    fleet.settle(random, reconnect=True)
