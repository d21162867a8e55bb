"""The steps of histories: operations of the program, deliveries of messages, and faults.

A step is a function of the fleet and of its own random numbers. A history therefore stays valid without some of its
steps, which is how a failing history is shrunk.
"""

from collections.abc import Callable
from random import Random

from simulation import faults
from simulation.fleet import Fleet, Frozen
from simulation.keys import KeyOperation

#: Latest time in a history before its ending. No time-out of a worker or a round has passed by then.
_STRICT_SECONDS = 1020.0


def use(fleet: Fleet, random: Random) -> None:
    """All ranks use a key once more. Ranks that are behind catch up."""
    key = random.choice(fleet.key_operations())
    _catch_up(fleet, random, [key], more=1)
    _start_all(fleet, random)


def use_all(fleet: Fleet, random: Random) -> None:
    """All ranks use most keys once more, as in a training step."""
    keys = [key for key in fleet.key_operations() if random.random() < 0.7]
    _catch_up(fleet, random, keys, more=1)
    _start_all(fleet, random)


def reserve(fleet: Fleet, random: Random) -> None:
    """A rank reserves an operation."""
    fleet.reserve(random.randrange(fleet.plan.ranks), random.choice(fleet.key_operations()), random.randint(-3, 3))


def start(fleet: Fleet, random: Random) -> None:
    """A reserved operation is started."""
    rank = random.randrange(fleet.plan.ranks)
    if fleet.reserved[rank]:
        fleet.start(rank, random.randrange(len(fleet.reserved[rank])))


def moves(fleet: Fleet, random: Random) -> None:
    """Messages are sent and received, and sums are computed, in random order. Some directions are slow."""
    random_moves(fleet, random, random.choice((3, 30, 100, 300)), _slow(fleet, random))


def settle(fleet: Fleet, random: Random) -> None:
    """All messages in flight arrive."""
    fleet.settle(random)


def time(fleet: Fleet, random: Random) -> None:
    """Time passes."""
    seconds = random.choice((0.001, 0.02, 1.0))
    if fleet.now + seconds < _STRICT_SECONDS:
        fleet.pass_time(seconds)


def cut(fleet: Fleet, random: Random) -> None:
    """A stream breaks. One side may not notice for a while."""
    _cut(fleet, random, *random.choice(fleet.links))


def cut_client(fleet: Fleet, random: Random) -> None:
    """All streams of a worker or of a relay break."""
    client = random.choice(fleet.clients)
    for index in fleet.processes_of(client):
        _cut(fleet, random, client, index)


def reconnect(fleet: Fleet, random: Random) -> None:
    """Ended processes are restarted, and clients that know that their stream broke reconnect."""
    few = random.random() < 0.3
    for index in range(fleet.plan.processes):
        fleet.start_aggregator(index)
    for link in fleet.links:
        if not few or random.random() < 0.5:
            fleet.connect(*link)


def take_over(fleet: Fleet, random: Random) -> None:
    """A client opens a new stream before the process has read all of the old one and seen its end."""
    number, index = random.choice(fleet.links)
    client = fleet.client(number)
    if client is None or client.to(index).stream is None:
        return
    fleet.log(f"  {fleet.name(number)} at process {index}")
    random_moves(fleet, random, 10, {("read", number, index)})
    faults.cut(fleet, number, index, client_knows=True, aggregator_knows=False)
    # The process may still read some messages of the old stream.
    for _ in range(random.choice((0, 1, 5))):
        fleet.read(number, index, random)
    if fleet.connect(number, index):
        fleet.counters["fault: streams taken over"] += 1


def restart(fleet: Fleet, random: Random) -> None:
    """A process is killed, and in most cases restarted at once."""
    _restart(fleet, random, random.randrange(fleet.plan.processes))


def restarts(fleet: Fleet, random: Random) -> None:
    """A process is killed several times in a row, before all clients have reconnected."""
    index = random.randrange(fleet.plan.processes)
    clients = fleet.clients_of(index)
    for _ in range(random.randint(2, 4)):
        fleet.kill_aggregator(index, "is killed")
        fleet.start_aggregator(index)
        # To a relay of an elastic job nobody may connect any more.
        for client in random.sample(clients, random.randint(min(1, len(clients)), len(clients))):
            fleet.lose(client, index)
            fleet.connect(client, index)
        random_moves(fleet, random, random.choice((10, 40, 100)), only=index)


def restart_several(fleet: Fleet, random: Random) -> None:
    """Several processes are killed at once, such as a relay and an owner. They are restarted in any order."""
    killed = random.sample(range(fleet.plan.processes), random.randint(1, fleet.plan.processes))
    if random.random() < 0.5:
        _skew(fleet, random)
    for index in killed:
        fleet.kill_aggregator(index, "is killed with others")
    for index in random.sample(killed, len(killed)):
        if random.random() < 0.5:
            random_moves(fleet, random, random.choice((10, 40)))
        fleet.start_aggregator(index)
        if random.random() < 0.5:
            clients = fleet.clients_of(index)
            for client in random.sample(clients, len(clients)):
                fleet.lose(client, index)
                fleet.connect(client, index)


def skew(fleet: Fleet, random: Random) -> None:
    """Some ranks get a result and continue, others do not. Then something may break."""
    _skew(fleet, random)
    match random.choice(("nothing", "restart", "restart", "cut")):
        case "restart":
            _restart(fleet, random, random.randrange(fleet.plan.processes))
        case "cut":
            _cut(fleet, random, *random.choice(fleet.links))


def reconnect_one_by_one(fleet: Fleet, random: Random) -> None:
    """A process is killed while ranks differ by a round. Its clients reconnect one after the other."""
    if random.random() < 0.8:
        _skew(fleet, random)
    index = random.randrange(fleet.plan.processes)
    clients = fleet.clients_of(index)
    fleet.kill_aggregator(index, "is killed")
    fleet.start_aggregator(index)
    for client in random.sample(clients, len(clients)):
        fleet.lose(client, index)
        fleet.connect(client, index)
        others = {
            (what, other, index)
            for what in ("send", "receive")
            for other in clients
            if other != client and random.random() < 0.3
        }
        random_moves(fleet, random, random.choice((20, 60, 150)), others, only=index)


def cut_during_restore(fleet: Fleet, random: Random) -> None:
    """After a restart, streams break repeatedly while clients restore sums that others lack."""
    _skew(fleet, random)
    index = random.randrange(fleet.plan.processes)
    clients = fleet.clients_of(index)
    fleet.kill_aggregator(index, "is killed")
    fleet.start_aggregator(index)
    for client in clients:
        fleet.lose(client, index)
    for _ in range(random.randint(1, 5)):
        for client in random.sample(clients, len(clients)):
            fleet.connect(client, index)
        silent: Frozen = set()
        if random.random() < 0.5:
            # Some clients do not answer when the process asks for a sum.
            random_moves(fleet, random, 20, only=index)
            silent = {("send", client, index) for client in clients if random.random() < 0.4}
        random_moves(fleet, random, random.choice((10, 30, 80)), silent, only=index)
        if clients:
            faults.cut(fleet, random.choice(clients), index, client_knows=True, aggregator_knows=random.random() < 0.5)


def lose_result(fleet: Fleet, random: Random) -> None:
    """A relay has results that none of its ranks has. It tells a restarted process of them, and is killed."""
    if not fleet.plan.relays:
        return
    number = random.randrange(len(fleet.plan.relays))
    relay, client = fleet.plan.relays[number], fleet.plan.ranks + number
    index = random.choice(fleet.processes_of(client))
    if index == relay.process:
        return
    key = random.choice(fleet.key_operations())
    _catch_up(fleet, random, [key], more=1)
    _start_all(fleet, random)
    share = random.choice((0.5, 1.0))
    behind = {other for other in fleet.clients if random.random() < share and other != client}
    held = {("receive", c, a) for c, a in fleet.links if c in behind}
    # Not even under way.
    held |= {("write", c, a) for c, a in fleet.links if a == relay.process}
    fleet.settle(random, held)
    fleet.kill_aggregator(index, "is killed")
    fleet.start_aggregator(index)
    for other in random.sample(fleet.clients_of(index), len(fleet.clients_of(index))):
        fleet.lose(other, index)
        fleet.connect(other, index)
    random_moves(fleet, random, random.choice((5, 10, 20, 60)), held, only=index)
    fleet.kill_aggregator(relay.process, "is killed with results")
    fleet.start_aggregator(relay.process)


def drain(fleet: Fleet, random: Random) -> None:
    """One process is told to stop, or all of them one after the other."""
    rolling = random.random() < 0.3
    if fleet.now >= _STRICT_SECONDS:
        # Grace periods that pass one after the other take as long as a round may wait.
        return
    for index in range(fleet.plan.processes) if rolling else [random.randrange(fleet.plan.processes)]:
        faults.drain_aggregator(fleet, index)
        fleet.log(f"  process {index}")
        random_moves(fleet, random, random.choice((0, 10, 100)))
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
        cut_client,
        reconnect,
        take_over,
        restart,
        restarts,
        restart_several,
        skew,
        reconnect_one_by_one,
        cut_during_restore,
        lose_result,
        drain,
    )
}


def catch_up(fleet: Fleet, random: Random) -> None:
    """Make all ranks reserve and start the same operations."""
    _catch_up(fleet, random, list(fleet.counts), more=0)
    _start_all(fleet, random)


def _catch_up(fleet: Fleet, random: Random, keys: list[KeyOperation], more: int) -> None:
    for key in random.sample(keys, len(keys)):
        counts = fleet.counts.setdefault(key, [0] * fleet.plan.ranks)
        target = max(counts) + more
        for rank in range(fleet.plan.ranks):
            while counts[rank] < target and fleet.reserve(rank, key, random.randint(-3, 3)):
                pass


def _start_all(fleet: Fleet, random: Random) -> None:
    for rank in random.sample(range(fleet.plan.ranks), fleet.plan.ranks):
        while fleet.reserved[rank]:
            fleet.start(rank, random.randrange(len(fleet.reserved[rank])))


def random_moves(
    fleet: Fleet, random: Random, count: int, frozen: Frozen = frozenset(), *, only: int | None = None
) -> None:
    """Make random moves, with `only` at one process."""
    if only is not None:
        frozen = set(frozen) | {
            (w, c, a) for w in ("send", "read", "write", "receive") for c, a in fleet.links if a != only
        }
    for _ in range(count):
        fleet.move(random, frozen)
    for index, aggregator in enumerate(fleet.aggregators):
        if aggregator is not None and aggregator.draining and aggregator.drained(fleet.now):
            fleet.kill_aggregator(index, "has drained")


def _slow(fleet: Fleet, random: Random) -> Frozen:
    match random.choice(("none", "none", "some", "client", "process", "receiving")):
        case "none":
            return frozenset()
        case "some":
            share = random.random() / 2
            chosen: Callable[[str, int, int], bool] = lambda *_: random.random() < share  # noqa: E731
        case "client":
            client = random.choice(fleet.clients)
            chosen = lambda _, c, __: c == client  # noqa: E731
        case "process":
            index = random.randrange(fleet.plan.processes)
            chosen = lambda _, __, a: a == index  # noqa: E731
        case _:
            clients = {c for c in fleet.clients if random.random() < 0.5}
            chosen = lambda what, c, _: what == "receive" and c in clients  # noqa: E731
    return {(w, c, a) for w in ("send", "read", "write", "receive") for c, a in fleet.links if chosen(w, c, a)}


def _cut(fleet: Fleet, random: Random, client: int, index: int) -> None:
    client_knows, aggregator_knows = random.choice(((True, True), (True, False), (False, True)))
    fleet.log(f"  {fleet.name(client)} at process {index}, {client_knows=}, {aggregator_knows=}")
    faults.cut(fleet, client, index, client_knows=client_knows, aggregator_knows=aggregator_knows)


def _restart(fleet: Fleet, random: Random, index: int) -> None:
    fleet.kill_aggregator(index, "is killed")
    if random.random() < 0.8:
        fleet.start_aggregator(index)
    if random.random() < 0.5:
        for client in fleet.clients_of(index):
            fleet.lose(client, index)
            fleet.connect(client, index)


def _skew(fleet: Fleet, random: Random) -> None:
    """All ranks use a key, and only some get results. These may use it once more."""
    key = random.choice(fleet.key_operations())
    _catch_up(fleet, random, [key], more=1)
    _start_all(fleet, random)
    clients = random.sample(fleet.clients, random.randint(1, max(1, len(fleet.clients) - 1)))
    held = {("receive", client, index) for client in clients for index in fleet.processes_of(client)}
    behind = {rank for rank in range(fleet.plan.ranks) if not fleet.clients_above(rank).isdisjoint(clients)}
    if random.random() < 0.3:
        held = {entry for entry in sorted(held) if random.random() < 0.6}
    fleet.settle(random, held)
    if random.random() < 0.6:
        for rank in set(range(fleet.plan.ranks)) - behind:
            if fleet.reserve(rank, key, random.randint(-3, 3)):
                fleet.start(rank, len(fleet.reserved[rank]) - 1)
        if random.random() < 0.5:
            fleet.settle(random, held)
        else:
            random_moves(fleet, random, random.choice((5, 30)), held)
