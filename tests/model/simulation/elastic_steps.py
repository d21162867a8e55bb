"""The steps of histories of elastic jobs: workers are killed, stopped or cut off, and lost; others join."""

from collections.abc import Callable
from random import Random

from psum.aggregator.relay.relays import FOUND_SECONDS
from simulation import faults
from simulation.boundary import Boundary
from simulation.elastic_cuts import forget, part, share
from simulation.fleet import WORKER_TIMEOUT_SECONDS, Fleet
from simulation.groups import Relay
from simulation.steps import catch_up, random_moves, restart, use
from simulation.worker import WorkerProcess


def kill(fleet: Fleet, random: Random) -> None:
    """A worker of an elastic job is killed. The aggregators notice later."""
    survivors = [rank for rank in fleet.members.survivors if rank not in fleet.stopped_ranks]
    if len(survivors) > 1:
        rank = random.choice(survivors)
        fleet.log(f"  rank {rank}")
        if random.random() < 0.5:
            # It has contributed to a round, and some survivors have not yet.
            key = random.choice(fleet.key_operations())
            for other in {rank, *random.sample(survivors, random.randrange(len(survivors)))}:
                if fleet.reserve(other, key, 0):
                    fleet.start(other, len(fleet.reserved[other]) - 1)
            fleet.settle(random)
        faults.kill_worker(fleet, rank)
        fleet.oracle.exclude(rank)


def stop(fleet: Fleet, random: Random) -> None:
    """A worker of an elastic job stops for a while. Some processes notice that it is silent."""
    running = [rank for rank in fleet.members.survivors if rank not in fleet.stopped_ranks]
    if len(running) > 1:
        rank = random.choice(running)
        fleet.log(f"  rank {rank}")
        fleet.counters["fault: workers stopped"] += 1
        fleet.stopped_ranks.add(rank)
        for aggregator in fleet.aggregators:
            for stream in list(aggregator.streams) if aggregator is not None and random.random() < 0.7 else ():
                if stream.client == rank:
                    aggregator.lose(stream, fleet.now)  # type: ignore[union-attr]


def resume(fleet: Fleet, random: Random) -> None:
    """Stopped workers continue. They may have been excluded."""
    for rank in list(fleet.stopped_ranks):
        if random.random() < 0.7:
            fleet.log(f"  rank {rank}")
            fleet.stopped_ranks.discard(rank)


def lose(fleet: Fleet, random: Random) -> None:
    """So much time passes that aggregators lose the workers that are away. Those that run are connected."""
    if random.random() < 0.5:
        # Otherwise some survivors contribute only after the loss to rounds to which the lost ranks have contributed.
        catch_up(fleet, random)
    fleet.settle(random, reconnect=True)
    _pass_timeout(fleet, random)
    fleet.settle(random, reconnect=True)
    if any(len(job.members.roster.not_joined()) > 1 for a in fleet.aggregators if a is not None for job in a.jobs):
        # An aggregator that was started again waits for as long again: they may be a group whose relay waits.
        _pass_timeout(fleet, random)
        fleet.settle(random, reconnect=True)
    let_relays_give_up(fleet, random)


def lose_at_one(fleet: Fleet, random: Random) -> None:
    """A worker cannot reach one aggregator, which loses it. The others hear of it only from workers."""
    running = [rank for rank in fleet.members.survivors if rank not in fleet.stopped_ranks]
    if len(running) < 2:
        return
    fleet.settle(random, reconnect=True)
    rank = random.choice(running)
    index = random.choice(fleet.processes_of(rank))
    fleet.log(f"  rank {rank} at aggregator {index}")
    faults.cut(fleet, rank, index, client_knows=True, aggregator_knows=True)
    fleet.parted.add((rank, index))
    _pass_timeout(fleet, random)
    fleet.settle(random, reconnect=random.random() < 0.5)
    fleet.parted.clear()


def lose_unseen(fleet: Fleet, random: Random) -> None:
    """An aggregator loses workers, and is killed before all others have heard of it."""
    catch_up(fleet, random)
    fleet.settle(random, reconnect=True)
    _pass_timeout(fleet, random)
    deaf = {(w, c, a) for w in ("receive", "send") for c, a in fleet.links if random.random() < 0.6}
    random_moves(fleet, random, random.choice((0, 5, 20, 60)), deaf)
    restart(fleet, random)
    fleet.stopped_ranks.clear()
    for link in random.sample(fleet.links, len(fleet.links)):
        if random.random() < 0.5:
            fleet.connect(*link)
            random_moves(fleet, random, random.choice((0, 5, 20)), deaf)


def come_back_first(fleet: Fleet, random: Random) -> None:
    """A worker is stopped for so long that it is lost. It comes back first to an aggregator that was killed."""
    running = [rank for rank in fleet.members.survivors if rank not in fleet.stopped_ranks]
    if len(running) < 2:
        return
    fleet.settle(random, reconnect=True)
    rank = random.choice(running)
    index = random.choice(fleet.processes_of(rank))
    fleet.log(f"  rank {rank} at aggregator {index}")
    fleet.stopped_ranks.add(rank)
    for aggregator in fleet.aggregators:
        for stream in list(aggregator.streams) if aggregator is not None else ():
            if stream.client == rank:
                aggregator.lose(stream, fleet.now)  # type: ignore[union-attr]
    _pass_timeout(fleet, random)
    for _ in range(random.randint(0, 3)):
        use(fleet, random)
        fleet.settle(random, reconnect=True)
    fleet.kill_aggregator(index, "is killed")
    fleet.start_aggregator(index)
    fleet.stopped_ranks.discard(rank)
    for process in fleet.processes_of(rank):
        fleet.lose(rank, process)
    fleet.connect(rank, index)
    others = {(w, c, a) for w in ("send", "receive") for c, a in fleet.links if c != rank}
    random_moves(fleet, random, random.choice((10, 30, 100)), others, only=index)
    fleet.settle(random, reconnect=True)


def leave(fleet: Fleet, random: Random) -> None:
    """A worker leaves in good order at a step boundary. Aggregators may end before all have heard of it."""
    fleet.stopped_ranks.clear()
    lose(fleet, random)
    catch_up(fleet, random)
    fleet.settle(random, reconnect=True)
    if len(fleet.members.survivors) < 2:
        return
    rank = random.choice(fleet.members.survivors)
    fleet.log(f"  rank {rank}")
    fleet.members.leave(rank)
    random_moves(fleet, random, random.choice((0, 10, 50, 200)))
    if random.random() < 0.5:
        drain_or_kill(fleet, random, random.randrange(fleet.plan.processes))
    fleet.settle(random, reconnect=True)
    for _ in range(8):
        # Those who wait for it may be away.
        fleet.pass_time(0.5)
        fleet.settle(random, reconnect=True)
    if random.random() < 0.3:
        restart(fleet, random)


def join(fleet: Fleet, random: Random) -> None:
    """A process joins at a step boundary. Members, aggregators and the newcomer may end meanwhile."""
    fleet.stopped_ranks.clear()
    lose(fleet, random)
    free = [rank for rank in range(fleet.plan.ranks) if rank in fleet.oracle.excluded and fleet.members.is_out(rank)]
    if not free or not fleet.members.survivors:
        return
    # Two may wait at once. One of them is admitted here.
    for rank in random.sample(free, min(len(free), random.choice((1, 1, 2)))):
        fleet.begin_join(rank, _draw_relay(fleet, random))
    if random.random() < 0.3:
        random_moves(fleet, random, random.choice((0, 10, 30)))
        for index in range(fleet.plan.processes):
            if random.random() < 0.4:
                drain_or_kill(fleet, random, index)
    catch_up(fleet, random)
    fleet.settle(random, reconnect=True)
    if fleet.plan.relays:
        # One that asked elsewhere while its rank's process before waited is refused, and asks again. Relays that were
        # started again may wait for ranks that do not come back. Those without members wait for others of their group.
        let_relays_give_up(fleet, random)
        for _ in range(fleet.plan.levels):
            fleet.pass_time(FOUND_SECONDS + 1)
            fleet.settle(random, reconnect=True)
        for worker in fleet.workers:
            if worker.alive and worker.found_nobody:
                worker.die()
        if not fleet.members.survivors or not any(worker.alive and worker.joining for worker in fleet.workers):
            return
    boundary = Boundary(fleet, _next_newcomer(fleet))
    held: set[tuple[str, int, int]] = set()
    if random.random() < 0.7:
        # Some members are at the boundary before others have their last results.
        behind = {rank for rank in fleet.members.survivors if random.random() < 0.5}
        held = {("receive", c, a) for c, a in fleet.links if c in behind}
        use(fleet, random)
        fleet.settle(random, held)
    for _ in range(random.choice((0, 1, 3, 6))):
        boundary.advance(random, most=1)
        random_moves(fleet, random, random.choice((0, 5, 20, 80)), held)
        _disturb_join(fleet, random, boundary)
        if random.random() < 0.3:
            held = set()
    for _ in range(8):
        boundary.advance(random)
        fleet.settle(random, reconnect=True)
        if boundary.is_over:
            break
        _pass_timeout(fleet, random)
        fleet.settle(random, reconnect=True)
    assert boundary.is_over, f"the join does not end: {boundary}"
    boundary.end(random)


def _next_newcomer(fleet: Fleet) -> WorkerProcess:
    """The process that the members admit next: the one with the lowest rank. Of a relay without members one waits at
    the owners, and the others behind it."""
    waiting = {worker.rank: worker for worker in fleet.workers if worker.alive and worker.joining}
    member = next(fleet.workers[rank] for rank in fleet.members.survivors if rank not in waiting)
    candidate = member.session.joins.admissions.candidate
    assert candidate is not None, f"rank {member.rank} knows of no candidate, although {sorted(waiting)} wait"
    first = [rank for rank, w in waiting.items() if w.relay is None or fleet.members.at(w.relay)]
    assert candidate.rank <= min(first, default=candidate.rank), f"{candidate} is admitted before {first}"
    return waiting[candidate.rank]


def _draw_relay(fleet: Fleet, random: Random) -> Relay | None:
    """The relay of a process that joins, or none. Often a host that has members, and sometimes one that has none."""
    with_members = [relay for relay in fleet.plan.relays if fleet.members.at(relay)]
    return random.choice([None, *with_members, *with_members, *fleet.plan.relays]) if fleet.plan.relays else None


def drain_or_kill(fleet: Fleet, random: Random, index: int) -> None:
    """A process is told to stop, or is killed. The next one may start at once."""
    if random.random() < 0.5:
        faults.drain_aggregator(fleet, index)
        random_moves(fleet, random, random.choice((0, 10, 50)))
    else:
        fleet.kill_aggregator(index, "is killed")
        if random.random() < 0.7:
            fleet.start_aggregator(index)


def _disturb_join(fleet: Fleet, random: Random, boundary: Boundary) -> None:
    """Something ends, or a stream breaks, while a process joins."""
    client, index = random.choice(fleet.links)
    kinds = (
        "nothing",
        "nothing",
        "aggregator",
        "aggregator",
        "member",
        "knowing",
        "knowing",
        "newcomer",
        "cut",
        "reconnect",
    )
    survivors = fleet.members.survivors
    match random.choice(kinds):
        case "aggregator":
            drain_or_kill(fleet, random, index)
            clients = fleet.clients_of(index)
            for other in random.sample(clients, len(clients)):
                if random.random() < 0.6:
                    fleet.lose(other, index)
                    fleet.connect(other, index)
                    random_moves(fleet, random, random.choice((0, 5, 20)), only=index)
        case "member" if len(survivors) > 1:
            # Often one that knows more than the others.
            rank = random.choice([rank for rank in boundary.admitted_by if rank in survivors] or survivors)
            fleet.log(f"  rank {rank} is killed")
            faults.kill_worker(fleet, rank)
            fleet.oracle.exclude(rank)
        case "knowing" if len(survivors) > 1 and set(boundary.admitted_by) & set(survivors):
            _lose_who_knows(fleet, random, random.choice(sorted({*boundary.admitted_by} & {*survivors})), index)
        case "newcomer" if random.random() < 0.4:
            fleet.log(f"  the newcomer of rank {boundary.newcomer.rank} is killed")
            boundary.newcomer.die()
        case "cut":
            faults.cut(fleet, client, index, client_knows=random.random() < 0.5, aggregator_knows=random.random() < 0.5)
        case "reconnect":
            for link in fleet.links:
                fleet.connect(*link)
        case _:
            pass


def _lose_who_knows(fleet: Fleet, random: Random, rank: int, index: int) -> None:
    """A member that has admitted the newcomer tells a restarted process what it knows, and is killed."""
    if index not in fleet.processes_of(rank):
        index = random.choice(fleet.processes_of(rank))
    fleet.log(f"  rank {rank} tells the next process {index}, and is killed")
    fleet.kill_aggregator(index, "is killed")
    fleet.start_aggregator(index)
    fleet.lose(rank, index)
    fleet.connect(rank, index)
    others = {(w, c, a) for w in ("send", "receive", "read", "write") for c, a in fleet.links if c != rank}
    random_moves(fleet, random, random.choice((30, 100, 200)), others, only=index)
    faults.kill_worker(fleet, rank)
    fleet.oracle.exclude(rank)


def let_relays_give_up(fleet: Fleet, random: Random) -> None:
    """Relays that were started again give up ranks that do not come back, and only then connect to those above."""
    for _ in range(fleet.plan.levels * fleet.plan.relay_patience):
        _pass_timeout(fleet, random)
        fleet.settle(random, reconnect=True)


def _pass_timeout(fleet: Fleet, random: Random) -> None:
    for _ in range(2):
        fleet.pass_time(WORKER_TIMEOUT_SECONDS / 2 + 1)
        if random.random() < 0.5:
            random_moves(fleet, random, 10)


ELASTIC_STEPS: dict[str, Callable[[Fleet, Random], None]] = {
    function.__name__: function
    for function in (
        kill,
        stop,
        resume,
        lose,
        lose_at_one,
        lose_unseen,
        come_back_first,
        part,
        share,
        forget,
        leave,
        join,
    )
}
