"""Endings of histories: failures that psum cannot repair, and what must hold when all workers have left."""

from collections.abc import Collection
from random import Random

from psum.client import (
    AbortedError,
    DisagreementError,
    RoundTimeoutError,
    TakenError,
    UnreachableError,
    WorkerLostError,
)
from simulation import elastic_steps, faults, steps
from simulation.fleet import ROUND_TIMEOUT_SECONDS, WORKER_TIMEOUT_SECONDS, Fleet, Frozen
from simulation.plan import Ending
from simulation.relay import Uplinks


def begin_ending(fleet: Fleet, random: Random) -> None:
    """Begin the plan's ending. From here on operations may fail, but only with the errors that the ending allows."""
    rank = random.randrange(fleet.plan.workers)
    worker, oracle = fleet.workers[rank], fleet.oracle
    ending = fleet.plan.ending
    if ending is not Ending.ALL_LEAVE:
        fleet.log(f"  rank {rank}")
    match ending:
        case Ending.DEATH:
            faults.kill_worker(fleet, rank)
            oracle.allow(WorkerLostError, RoundTimeoutError)
            oracle.blame([rank], fleet.groupmates([rank]))
        case Ending.HOST_DEATH:
            # All of them have joined everywhere, so all are noticed missing at once.
            fleet.settle(random, reconnect=True)
            ranks = _kill_host(fleet, random)
            oracle.allow(WorkerLostError, RoundTimeoutError)
            oracle.blame(ranks, fleet.groupmates(ranks), together=True)
        case Ending.RELAY_DEATH:
            if random.random() < 0.5:
                ranks = _kill_relay(fleet, random)
                oracle.allow(WorkerLostError, RoundTimeoutError)
                oracle.blame(ranks, fleet.groupmates(ranks), together=True)
            else:
                _lose_owner(fleet, random)
        case Ending.REPLACEMENT:
            faults.kill_worker(fleet, rank)
            oracle.allow(WorkerLostError, RoundTimeoutError, TakenError, DisagreementError)
            oracle.blame([rank], fleet.groupmates([rank]), replaced=True)
            if random.random() < 0.7:
                # Otherwise the new process joins before the aggregators notice the old one's death.
                for index, aggregator in enumerate(fleet.aggregators):
                    for stream in list(aggregator.streams) if aggregator is not None else ():
                        if stream.client == rank:
                            fleet.aggregators[index].lose(stream, fleet.now)  # type: ignore[union-attr]
            faults.replace_worker(fleet, rank)
        case Ending.TERMINATION:
            oracle.allow(WorkerLostError, RoundTimeoutError, TakenError, DisagreementError)
            oracle.blame([rank], fleet.groupmates([rank]), replaced=True)
            faults.terminate_worker(fleet, rank, random)
            if random.random() < 0.6:
                faults.replace_worker(fleet, rank)
        case Ending.ABORT:
            key = random.choice(fleet.key_operations())
            if fleet.reserve(rank, key, 0):
                oracle.allow(AbortedError, key=key)
                ticket, _ = fleet.reserved[rank].pop()
                oracle.forbid_results(key, ticket.round)
                ticket.abort("aborted on purpose")
                worker.submit(fleet.now)
        case Ending.EARLY_LEAVE:
            oracle.allow(WorkerLostError)
            oracle.blame([rank], fleet.groupmates([rank]))
            fleet.leaving_ranks.add(rank)
        case Ending.LATE_JOIN:
            oracle.allow(WorkerLostError, RoundTimeoutError)
            _join_late(fleet, random)
        case Ending.STALL:
            oracle.allow(RoundTimeoutError)
            steps.use(fleet, random)
            key = random.choice(fleet.key_operations())
            for other in range(fleet.plan.workers):
                fleet.reserve(other, key, 0)
                while other != rank and fleet.reserved[other]:
                    fleet.start(other, 0)
            _wait(fleet, random, ROUND_TIMEOUT_SECONDS + 10)
        case Ending.NO_KEPT_SUMS:
            oracle.allow(AbortedError, RoundTimeoutError)


def finish(fleet: Fleet, random: Random) -> None:
    """Let all ranks catch up and leave. Assert that every operation ends correctly and that nothing is left over."""
    fleet.absent_ranks.clear()
    if not all(worker.joined for worker in fleet.workers):
        fleet.settle(random, reconnect=True)
    if fleet.plan.elastic:
        fleet.stopped_ranks.clear()
        elastic_steps.lose(fleet, random)
        fleet.members.check()
    steps.catch_up(fleet, random)
    if fleet.plan.ending is Ending.ALL_LEAVE and random.random() < 0.7:
        (_leave_before_a_restart if random.random() < 0.3 else _leave_one_by_one)(fleet, random)
    fleet.settle(random, reconnect=True)
    if fleet.oracle.open and fleet.plan.elastic and fleet.plan.relays:
        # A relay that was started again may not know that it waits for ranks that do not come back.
        elastic_steps.let_relays_give_up(fleet, random)
    if fleet.oracle.strict:
        assert not fleet.oracle.open, f"{len(fleet.oracle.open)} operations wait although no message is in flight"
        excluded = fleet.oracle.excluded
        failed = [w.rank for w in fleet.workers if w.session.failure is not None and w.rank not in excluded]
        assert not failed, f"ranks {failed} have failed"
    else:
        _wait(fleet, random, WORKER_TIMEOUT_SECONDS + ROUND_TIMEOUT_SECONDS + 20)
        assert not fleet.oracle.open, f"{len(fleet.oracle.open)} operations wait after all time-outs have passed"
    fleet.check()

    for rank, worker in enumerate(fleet.workers):
        if worker.joining:
            # Nobody admits it any more. It would wait for the next run, for as long as a round may wait.
            worker.die()
        if not fleet.lost_processes.isdisjoint(fleet.processes_of(rank)):
            # Nobody answers its goodbye.
            worker.die()
    fleet.leaving_ranks.update(range(fleet.plan.ranks))
    for _ in range(20):
        fleet.settle(random, reconnect=True)
        if all(worker.gone for worker in fleet.workers):
            break
        fleet.pass_time(0.5)
    assert all(worker.gone for worker in fleet.workers), "goodbye was not answered"
    # After this time the aggregators have forgotten failed jobs.
    _wait(fleet, random, 3 * WORKER_TIMEOUT_SECONDS * fleet.plan.relay_patience)
    for index, aggregator in enumerate(fleet.aggregators):
        if aggregator is not None:
            assert not aggregator.jobs, f"process {index} still has {aggregator.jobs} after all workers have left"
            assert aggregator.registry.budget.reserved_bytes == 0, f"aggregator {index} keeps memory of ended jobs"
            assert not aggregator.connections


def _kill_host(fleet: Fleet, random: Random) -> Collection[int]:
    """Kill the workers of a host and its relay. Return their ranks."""
    if not fleet.plan.relays:
        ranks = random.sample(range(fleet.plan.workers), random.randint(1, fleet.plan.workers))
    else:
        relay = random.choice(fleet.plan.relays)
        ranks = list(relay.ranks)
        # Others cannot work without an owner, so if the host has one, another host takes over its address.
        fleet.kill_aggregator(relay.process, "is killed with its host")
        if relay.process >= fleet.plan.aggregators:
            fleet.lost_processes.add(relay.process)
    for rank in ranks:
        faults.kill_worker(fleet, rank)
    return ranks


def _kill_relay(fleet: Fleet, random: Random) -> Collection[int]:
    """Kill a relay that owns no shards, and do not restart it. Return the ranks that it stands for."""
    relays = [relay for relay in fleet.plan.relays if relay.process >= fleet.plan.aggregators]
    if not relays:
        return ()
    relay = random.choice(relays)
    fleet.kill_aggregator(relay.process, "is killed for good")
    fleet.lost_processes.add(relay.process)
    return relay.ranks


def _lose_owner(fleet: Fleet, random: Random) -> None:
    """Let a relay give up one of its uplinks after it lost it. Another process may be away as others hear of that."""
    fleet.oracle.allow(UnreachableError, WorkerLostError, RoundTimeoutError)
    fleet.oracle.blame(())
    uplinks = {number: fleet.client(number) for number, _ in fleet.links}
    relays = [(n, c) for n, c in uplinks.items() if isinstance(c, Uplinks) and not c.failed and c.connections]
    if not relays:
        return
    number, client = random.choice(relays)
    relay = fleet.plan.relays[number - fleet.plan.ranks]
    fleet.oracle.blame(relay.ranks, fleet.groupmates(relay.ranks), together=True)
    connection = random.choice(client.connections)
    away = random.choice([None, *(each for each in range(fleet.plan.processes) if each != relay.process)])
    if away is not None and random.random() < 0.5:
        # Otherwise it hangs, and is killed later.
        fleet.kill_aggregator(away, "is killed before the job fails")
    fleet.log(f"  {fleet.name(number)} cannot reach process {connection.process} any more")
    fleet.counters["fault: uplinks given up"] += 1
    faults.cut(fleet, number, connection.process, client_knows=True, aggregator_knows=random.random() < 0.5)
    client.give_up(connection, UnreachableError(f"process {connection.process} cannot be reached"), fleet.now)
    if away is not None:
        _spread_with_one_away(fleet, random, away)


def _spread_with_one_away(fleet: Fleet, random: Random, away: int) -> None:
    """Some clients hear that the job has failed. Then processes are killed, and the one that was away is started again.

    Those that have heard of it must tell the next processes, which the others may come back to first.
    """
    behind = {("receive", c, a) for c, a in fleet.links if random.random() < 0.3}
    behind |= {("read", client, away) for client in fleet.clients_of(away)}
    for client in random.sample(fleet.clients, random.randrange(len(fleet.clients))):
        behind |= {("receive", client, a) for a in fleet.processes_of(client)}
    fleet.settle(random, behind)
    for index in range(fleet.plan.processes):
        if index == away or random.random() < 0.5:
            fleet.kill_aggregator(index, "is killed after the job has failed")
            for client in fleet.clients_of(index):
                if ("receive", client, index) in behind:
                    fleet.lose(client, index)
    for index in random.sample(range(fleet.plan.processes), fleet.plan.processes):
        fleet.start_aggregator(index)
        steps.random_moves(fleet, random, random.choice((0, 30)), behind)


def _join_late(fleet: Fleet, random: Random) -> None:
    """Let some or all present ranks leave. Then the absent rank joins, and gets an error when it uses a key."""
    present = [rank for rank in range(fleet.plan.workers) if rank not in fleet.absent_ranks]
    gone = random.sample(present, random.randint(1, len(present)))
    fleet.leaving_ranks.update(gone)
    for _ in range(20):
        fleet.settle(random, reconnect=True)
        if all(fleet.workers[rank].gone for rank in gone):
            break
        fleet.pass_time(0.5)
    fleet.pass_time(random.choice((0.0, 5.0, 80.0)))
    late, fleet.absent_ranks = fleet.absent_ranks, set()
    fleet.settle(random, reconnect=True)
    for rank in late:
        for key in fleet.key_operations():
            assert fleet.reserve(rank, key, 0)
        while fleet.reserved[rank]:
            fleet.start(rank, 0)
    # A connection on which memory of a failed operation was still being sent has been closed.
    fleet.settle(random, reconnect=True)
    if not any(fleet.plan.relay_of(rank) for rank in late):
        # A relay waits for the ranks of its group that are still there, before it asks for the others.
        assert not fleet.oracle.open, f"rank {late} joined late and waits for ranks that have left"


def _leave_one_by_one(fleet: Fleet, random: Random) -> None:
    """Let workers leave as soon as their own operations are done, while others still wait and connections break."""
    possible = [name for name in ("cut", "restart", "drain", "take_over", "reconnect") if name in fleet.plan.steps]
    behind: Frozen = frozenset()
    if "restart" in possible:
        # Some ranks lack the last sums when others leave. After the kill, only the leaving ranks have those sums.
        behind = {("receive", c, a) for c, a in fleet.links if random.random() < 0.4}
        fleet.settle(random, behind)
        steps.restart(fleet, random)
    for _ in range(random.randint(1, 12)):
        if random.random() < 0.5:
            steps.random_moves(fleet, random, 60, behind)
        else:
            steps.moves(fleet, random)
        for rank, worker in enumerate(fleet.workers):
            if not worker.busy and random.random() < 0.4:
                fleet.leaving_ranks.add(rank)
        if possible and random.random() < 0.3:
            name = random.choice(possible)
            fleet.log(f"  {name} as workers leave")
            steps.STEPS[name](fleet, random)


def _leave_before_a_restart(fleet: Fleet, random: Random) -> None:
    """Let some ranks leave in order while ranks of other groups lack the last sums. Then kill some processes.

    The next processes must not wait for the ranks that have left.
    """
    group = random.choice([relay.ranks for relay in fleet.plan.relays] or [tuple(range(fleet.plan.workers))])
    done = {client for rank in group for client in fleet.clients_above(rank)}
    # The ranks that leave stay until the others of their group have all results.
    behind = {("receive", c, a) for c, a in fleet.links if c not in done and random.random() < 0.7}
    fleet.settle(random, behind, reconnect=True)
    leaving = random.sample(group, random.randint(1, len(group)))
    for rank in leaving:
        if not fleet.workers[rank].busy:
            fleet.leaving_ranks.add(rank)
    fleet.settle(random, behind)
    processes = range(fleet.plan.processes)
    for index in random.sample(processes, random.randint(0, len(processes))):
        fleet.kill_aggregator(index, "is killed after some ranks have left")
        fleet.start_aggregator(index)
    if random.random() < 0.5:
        steps.random_moves(fleet, random, 60)
    if random.random() < 0.5:
        # Those that stay may do so for long, for example to save what was trained.
        fleet.settle(random, reconnect=True)
        fleet.pass_time(WORKER_TIMEOUT_SECONDS + 5)


def _wait(fleet: Fleet, random: Random, seconds: float) -> None:
    """Let time pass, and deliver all messages meanwhile."""
    until = fleet.now + seconds
    while fleet.now < until:
        fleet.settle(random, reconnect=True)
        fleet.pass_time(10.0)
    fleet.settle(random, reconnect=True)
