"""The steps that histories are made of: what the program does, what moves, what breaks.

A step is a function of the fleet and of random numbers of its own, so that a history from which some steps are left out
still means something: this is how a failing one is made short.
"""

from collections.abc import Callable
from random import Random

from simulation.fleet import Fleet, Frozen
from simulation.ledger import Place

#: Until then histories in which nothing may fail may take; below the time-out of workers.
_STRICT_SECONDS = 1020.0


def use(fleet: Fleet, random: Random) -> None:
    """All ranks use a key once more; who is behind does so as often as it takes."""
    place = random.choice(fleet.places())
    _catch_up(fleet, random, [place], more=1)
    _start_all(fleet, random)


def use_all(fleet: Fleet, random: Random) -> None:
    """All ranks use all keys once more: a step of a training."""
    places = [place for place in fleet.places() if random.random() < 0.7]
    _catch_up(fleet, random, places, more=1)
    _start_all(fleet, random)


def reserve(fleet: Fleet, random: Random) -> None:
    """A rank announces something."""
    fleet.reserve(random.randrange(fleet.plan.workers), random.choice(fleet.places()), random.randint(-3, 3))


def start(fleet: Fleet, random: Random) -> None:
    """A value that was announced becomes ready."""
    rank = random.randrange(fleet.plan.workers)
    if fleet.reserved[rank]:
        fleet.start(rank, random.randrange(len(fleet.reserved[rank])))


def moves(fleet: Fleet, random: Random) -> None:
    """Messages are sent and arrive, and sums are made, in any order; some ways are slow."""
    some_moves(fleet, random, random.choice((3, 30, 100, 300)), _slow(fleet, random))


def settle(fleet: Fleet, random: Random) -> None:
    """All that is under way arrives."""
    fleet.settle(random)


def time(fleet: Fleet, random: Random) -> None:
    """Time passes."""
    seconds = random.choice((0.001, 0.02, 1.0))
    if fleet.now + seconds < _STRICT_SECONDS:
        fleet.pass_time(seconds)


def cut(fleet: Fleet, random: Random) -> None:
    """A connection breaks, and one side may not know for a while."""
    rank, index = random.choice(fleet.pairs)
    _cut(fleet, random, rank, index)


def cut_rank(fleet: Fleet, random: Random) -> None:
    """All connections of a rank break."""
    rank = random.randrange(fleet.plan.workers)
    for index in range(fleet.plan.aggregators):
        _cut(fleet, random, rank, index)


def reconnect(fleet: Fleet, random: Random) -> None:
    """What has ended is started again, and workers that know that their connection broke get through again."""
    few = random.random() < 0.3
    for index in range(fleet.plan.aggregators):
        fleet.boot(index)
    for pair in fleet.pairs:
        if not few or random.random() < 0.5:
            fleet.connect(*pair)


def take_over(fleet: Fleet, random: Random) -> None:
    """A worker opens a new stream while the aggregator has not seen the end of the old one, nor read all of it."""
    rank, index = random.choice(fleet.pairs)
    if fleet.workers[rank].links[index].connection is None:
        return
    fleet.log(f"  rank {rank} at aggregator {index}")
    some_moves(fleet, random, 10, {("read", rank, index)})
    fleet.cut(rank, index, worker_knows=True, aggregator_knows=False)
    # Some of what the old stream had may still be read.
    for _ in range(random.choice((0, 1, 5))):
        fleet.read(rank, index, random)
    if fleet.connect(rank, index):
        fleet.tally["fault: streams taken over"] += 1


def restart(fleet: Fleet, random: Random) -> None:
    """An aggregator is killed, and mostly started again at once."""
    _restart(fleet, random, random.randrange(fleet.plan.aggregators))


def restarts(fleet: Fleet, random: Random) -> None:
    """An aggregator is killed several times in a row, before all ranks have come back to it."""
    index = random.randrange(fleet.plan.aggregators)
    for _ in range(random.randint(2, 4)):
        fleet.kill(index, "is killed")
        fleet.boot(index)
        for rank in random.sample(range(fleet.plan.workers), random.randint(1, fleet.plan.workers)):
            fleet.workers[rank].lose(index)
            fleet.connect(rank, index)
        some_moves(fleet, random, random.choice((10, 40, 100)), only=index)


def skew(fleet: Fleet, random: Random) -> None:
    """Some ranks get a result and go on, others do not; then something breaks."""
    _skew(fleet, random)
    index = random.randrange(fleet.plan.aggregators)
    match random.choice(("nothing", "restart", "restart", "cut")):
        case "restart":
            _restart(fleet, random, index)
        case "cut":
            _cut(fleet, random, random.randrange(fleet.plan.workers), index)


def return_in_turn(fleet: Fleet, random: Random) -> None:
    """While ranks differ by a round an aggregator is killed, and they come back to it one after the other."""
    if random.random() < 0.8:
        _skew(fleet, random)
    index = random.randrange(fleet.plan.aggregators)
    fleet.kill(index, "is killed")
    fleet.boot(index)
    for rank in random.sample(range(fleet.plan.workers), fleet.plan.workers):
        fleet.workers[rank].lose(index)
        fleet.connect(rank, index)
        others = {
            (what, other, index)
            for what in ("send", "receive")
            for other in range(fleet.plan.workers)
            if other != rank and random.random() < 0.3
        }
        some_moves(fleet, random, random.choice((20, 60, 150)), others, only=index)


def lose_a_holder(fleet: Fleet, random: Random) -> None:
    """After a restart, connections break again and again while ranks give back what others lack."""
    _skew(fleet, random)
    index = random.randrange(fleet.plan.aggregators)
    fleet.kill(index, "is killed")
    fleet.boot(index)
    for rank in range(fleet.plan.workers):
        fleet.workers[rank].lose(index)
    for _ in range(random.randint(1, 5)):
        for rank in random.sample(range(fleet.plan.workers), fleet.plan.workers):
            fleet.connect(rank, index)
        silent: Frozen = set()
        if random.random() < 0.5:
            # Who is asked for a sum does not answer.
            some_moves(fleet, random, 20, only=index)
            silent = {("send", r, index) for r in range(fleet.plan.workers) if random.random() < 0.4}
        some_moves(fleet, random, random.choice((10, 30, 80)), silent, only=index)
        fleet.cut(
            random.randrange(fleet.plan.workers), index, worker_knows=True, aggregator_knows=random.random() < 0.5
        )


def drain(fleet: Fleet, random: Random) -> None:
    """An aggregator is told to stop, or all of them one after the other."""
    rolling = random.random() < 0.3
    for index in range(fleet.plan.aggregators) if rolling else [random.randrange(fleet.plan.aggregators)]:
        fleet.drain(index)
        fleet.log(f"  aggregator {index}")
        some_moves(fleet, random, random.choice((0, 10, 100)))
        if rolling:
            fleet.settle(random, reconnect=True)


STEPS: dict[str, Callable[[Fleet, Random], None]] = {
    function.__name__: function
    for function in (
        use,
        use_all,
        reserve,
        start,
        moves,
        settle,
        time,
        cut,
        cut_rank,
        reconnect,
        take_over,
        restart,
        restarts,
        skew,
        return_in_turn,
        lose_a_holder,
        drain,
    )
}


def catch_up(fleet: Fleet, random: Random) -> None:
    """All ranks have announced and started the same."""
    _catch_up(fleet, random, list(fleet.counts), more=0)
    _start_all(fleet, random)


def _catch_up(fleet: Fleet, random: Random, places: list[Place], more: int) -> None:
    for place in random.sample(places, len(places)):
        counts = fleet.counts.setdefault(place, [0] * fleet.plan.workers)
        target = max(counts) + more
        for rank in range(fleet.plan.workers):
            while counts[rank] < target and fleet.reserve(rank, place, random.randint(-3, 3)):
                pass


def _start_all(fleet: Fleet, random: Random) -> None:
    for rank in random.sample(range(fleet.plan.workers), fleet.plan.workers):
        while fleet.reserved[rank]:
            fleet.start(rank, random.randrange(len(fleet.reserved[rank])))


def some_moves(
    fleet: Fleet, random: Random, count: int, frozen: Frozen = frozenset(), *, only: int | None = None
) -> None:
    """Some moves by chance, where wanted at one aggregator only."""
    if only is not None:
        frozen = set(frozen) | {
            (w, r, a) for w in ("send", "read", "write", "receive") for r, a in fleet.pairs if a != only
        }
    for _ in range(count):
        fleet.move(random, frozen)
    for index, aggregator in enumerate(fleet.aggregators):
        if aggregator is not None and aggregator.draining and aggregator.drained(fleet.now):
            fleet.kill(index, "has drained")


def _slow(fleet: Fleet, random: Random) -> Frozen:
    match random.choice(("none", "none", "some", "rank", "aggregator", "receiving")):
        case "none":
            return frozenset()
        case "some":
            share = random.random() / 2
            chosen: Callable[[str, int, int], bool] = lambda *_: random.random() < share  # noqa: E731
        case "rank":
            rank = random.randrange(fleet.plan.workers)
            chosen = lambda _, r, __: r == rank  # noqa: E731
        case "aggregator":
            index = random.randrange(fleet.plan.aggregators)
            chosen = lambda _, __, a: a == index  # noqa: E731
        case _:
            ranks = {r for r in range(fleet.plan.workers) if random.random() < 0.5}
            chosen = lambda what, r, _: what == "receive" and r in ranks  # noqa: E731
    return {(w, r, a) for w in ("send", "read", "write", "receive") for r, a in fleet.pairs if chosen(w, r, a)}


def _cut(fleet: Fleet, random: Random, rank: int, index: int) -> None:
    who = random.choice(((True, True), (True, False), (False, True)))
    fleet.log(f"  rank {rank} at aggregator {index}, worker knows {who[0]}, aggregator knows {who[1]}")
    fleet.cut(rank, index, worker_knows=who[0], aggregator_knows=who[1])


def _restart(fleet: Fleet, random: Random, index: int) -> None:
    fleet.kill(index, "is killed")
    if random.random() < 0.8:
        fleet.boot(index)
    if random.random() < 0.5:
        for rank in range(fleet.plan.workers):
            fleet.workers[rank].lose(index)
            fleet.connect(rank, index)


def _skew(fleet: Fleet, random: Random) -> None:
    """All use a key, and only some ranks get results; who does may use it once more."""
    place = random.choice(fleet.places())
    _catch_up(fleet, random, [place], more=1)
    _start_all(fleet, random)
    behind = random.sample(range(fleet.plan.workers), random.randint(1, max(1, fleet.plan.workers - 1)))
    held = {("receive", rank, index) for rank in behind for index in range(fleet.plan.aggregators)}
    if random.random() < 0.3:
        held = {entry for entry in held if random.random() < 0.6}
    fleet.settle(random, held)
    if random.random() < 0.6:
        for rank in set(range(fleet.plan.workers)) - set(behind):
            if fleet.reserve(rank, place, random.randint(-3, 3)):
                fleet.start(rank, len(fleet.reserved[rank]) - 1)
        if random.random() < 0.5:
            fleet.settle(random, held)
        else:
            some_moves(fleet, random, random.choice((5, 30)), held)
