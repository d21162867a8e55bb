"""Faults of a simulated fleet: cut streams, and processes that are killed, told to stop, or replaced."""

from random import Random

from simulation.fleet import Fleet


def cut(fleet: Fleet, number: int, index: int, *, client_knows: bool, aggregator_knows: bool) -> None:
    """Break a stream. A side that does not know yet notices after it has received the messages in flight."""
    client, aggregator = fleet.client(number), fleet.aggregators[index]
    stream = None if client is None else client.to(index).stream
    if client is None or stream is None:
        return
    fleet.counters["fault: connections cut"] += 1
    if aggregator_knows and aggregator is not None:
        aggregator.lose(stream, fleet.now)
    if client_knows:
        client.lose(index)


def kill_worker(fleet: Fleet, rank: int) -> None:
    """Kill a worker process. The aggregators notice later."""
    fleet.counters["fault: workers killed"] += 1
    fleet.workers[rank].die()
    fleet.oracle.worker_killed(rank)
    fleet.reserved[rank].clear()


def terminate_worker(fleet: Fleet, rank: int, random: Random) -> None:
    """Send SIGTERM to a worker process, which ends when the messages in flight have been delivered."""
    fleet.counters["fault: workers terminated"] += 1
    worker = fleet.workers[rank]
    # A relay passes it on where it is connected. Elsewhere its ranks count as lost after the worker timeout.
    clients = [worker, *filter(None, map(fleet.client, fleet.clients[fleet.plan.ranks :]))]
    heard = len(clients) == 1 + len(fleet.plan.relays) and all(
        connection.stream is not None and connection.welcomed for client in clients for connection in client.connections
    )
    heard = heard and not any(a is None or a.draining for a in fleet.aggregators)
    worker.terminate()
    fleet.oracle.worker_killed(rank)
    fleet.reserved[rank].clear()
    heard = heard and worker.session.took_part
    fleet.settle(random, reconnect=True)
    worker.die()
    if heard:
        assert not fleet.oracle.open, "a worker was terminated, and the other ranks have not heard of it"


def replace_worker(fleet: Fleet, rank: int) -> None:
    """Start another process for a rank. It begins with the first round."""
    fleet.counters["fault: workers replaced"] += 1
    fleet.keep_aggregators = True
    fleet.workers[rank] = fleet.new_worker(rank, fleet.workers[rank].number + 1)
    for counts in fleet.counts.values():
        counts[rank] = 0


def drain_aggregator(fleet: Fleet, index: int) -> None:
    """Tell an aggregator to shut down in order."""
    aggregator = fleet.aggregators[index]
    if aggregator is not None and not aggregator.draining and not fleet.keep_aggregators:
        fleet.counters["fault: aggregators told to stop"] += 1
        aggregator.drain(fleet.now + 10)
