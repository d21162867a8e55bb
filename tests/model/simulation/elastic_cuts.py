"""Steps of histories of elastic jobs: cuts of any links, and keys that only some ranks use."""

from random import Random

from psum.aggregator.relay.core.elastic_host_job import ElasticHostJob
from psum.client import Operation
from simulation import faults, keys
from simulation.fleet import WORKER_TIMEOUT_SECONDS, Fleet
from simulation.steps import catch_up, random_moves, use


def part(fleet: Fleet, random: Random) -> None:
    """Links are cut for long, often so that no worker reaches all aggregators. Then the network works again."""
    if fleet.stopped_ranks:
        # Aggregators may not have noticed yet that they are silent.
        return
    fleet.settle(random, reconnect=True)
    for link in _links(fleet, random):
        faults.cut(fleet, *link, client_knows=True, aggregator_knows=random.random() < 0.7)
        fleet.parted.add(link)
    fleet.settle(random)
    # One that was lost at an aggregator that was killed may be taken in again.
    running = [worker.rank for worker in fleet.workers if worker.alive and not worker.failed and not worker.joining]
    relays = fleet.clients[fleet.plan.ranks :]
    seeing = (fleet.parted.isdisjoint((c, index) for index in fleet.processes_of(c)) for c in (*running, *relays))
    blind = not any(seeing)
    fleet.log(f"  {sorted(fleet.parted)}, {'no view' if blind else 'some view'}")
    fleet.counters["fault: networks without a view"] += blind
    may_be_lost = fleet.members.lost_ranks | _unseen(fleet)
    for _ in range(2):
        fleet.pass_time(WORKER_TIMEOUT_SECONDS / 2 + 1)
        random_moves(fleet, random, random.choice((0, 10, 40)))
    assert not blind or fleet.members.lost_ranks <= may_be_lost, "an aggregator has lost a rank without a view"
    fleet.parted.clear()
    for link in random.sample(fleet.links, len(fleet.links)):
        # Those that are back tell aggregators that they reach all, before others are back.
        fleet.connect(*link)
        random_moves(fleet, random, random.choice((0, 20)))
        fleet.settle(random)
        fleet.pass_time(0.1)
    assert not blind or fleet.members.lost_ranks <= may_be_lost, (
        "an aggregator has lost a rank that had no time to come back"
    )
    fleet.settle(random, reconnect=True)


def share(fleet: Fleet, random: Random) -> None:
    """Some ranks use a key of their own, as for the transfer of a state. One of them may be killed meanwhile."""
    running = [
        rank for rank in fleet.members.survivors if rank not in fleet.stopped_ranks and fleet.workers[rank].alive
    ]
    if len(running) < 2:
        return
    if fleet.plan.by_roles and not fleet.shared:
        # All ranks agree on weights with their first operation. A state is transferred later.
        use(fleet, random)
    ranks = tuple(random.sample(running, random.randint(2, len(running))))
    fleet.shared += 1
    name = keys.of_some(random.randrange(len(fleet.plan.keys)), ranks, fleet.shared)
    key = name, random.choice(list(Operation))
    fleet.log(f"  {name}")
    fleet.counters["keys of some ranks"] += 1
    killed = random.choice(ranks) if random.random() < 0.3 and len(running) > 2 else None
    for _ in range(random.randint(1, 3)):
        for rank in random.sample(ranks, len(ranks)):
            if (rank != killed or random.random() < 0.5) and fleet.reserve(rank, key, 0):
                fleet.start(rank, len(fleet.reserved[rank]) - 1)
        random_moves(fleet, random, random.choice((0, 20, 60)))
    if killed is not None:
        faults.kill_worker(fleet, killed)
        fleet.oracle.exclude(killed)


def forget(fleet: Fleet, random: Random) -> None:
    """All forget the keys of some ranks, as with an admission: all operations are complete then."""
    if fleet.stopped_ranks:
        return
    catch_up(fleet, random)
    fleet.settle(random, reconnect=True)
    if any(call.rank in fleet.members.survivors for call in fleet.oracle.open):
        return
    survivors = set(fleet.members.survivors)
    for aggregator in fleet.aggregators:
        for job in aggregator.jobs if aggregator is not None else ():
            job.rounds.forget_ranked_keys()  # type: ignore[attr-defined]
            if isinstance(job, ElasticHostJob):
                job.uplink.forget([key_id for key_id in job.uplink.keys if key_id not in job.keys])
            left = [key for key in job.keys.values() if not survivors.isdisjoint(key.ranks)]
            assert not left, f"{left} are at rest, and are not forgotten"
    for rank in survivors:
        fleet.workers[rank].session.forget_ranked_keys()
    fleet.forget_ranked_keys()


def _unseen(fleet: Fleet) -> frozenset[tuple[int, int]]:
    """Processes that were killed before a relay was started again. It goes on without them, also without a view."""
    jobs = [job for aggregator in fleet.aggregators if aggregator is not None for job in aggregator.jobs]
    groups = [job for job in jobs if isinstance(job, ElasticHostJob) and job.members.reaches_owners is None]
    killed = [worker.rank for worker in fleet.workers if worker.relay is not None and not worker.alive]
    unseen = {rank for rank in killed if any(group.members.roster.member(rank) is None for group in groups)}
    return frozenset((rank, fleet.members.generations[rank]) for rank in unseen)


def _links(fleet: Fleet, random: Random) -> list[tuple[int, int]]:
    if random.random() < 0.5:
        share = random.choice((0.2, 0.5, 0.8))
        return [link for link in fleet.links if random.random() < share]
    # Two halves, each with some workers and some aggregators.
    clients = {client for client in fleet.clients if random.random() < 0.5}
    processes = {process for process in range(fleet.plan.processes) if random.random() < 0.5}
    return [(client, process) for client, process in fleet.links if (client in clients) != (process in processes)]
