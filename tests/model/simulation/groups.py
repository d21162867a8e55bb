"""The groups of ranks that share a relay: how they are drawn, and in which order their contributions are added."""

from random import Random
from typing import NamedTuple, Union

#: The members of a sum in the order of addition. Each is a rank or a sum of its own.
Tree = tuple[Union[int, "Tree"], ...]


#: More workers take longer, and find hardly more.
_MAX_WORKERS = 6


class Relay(NamedTuple):
    """One relay of a plan.

    Attributes:
        process: The number of its process. Below the number of owners, the process owns shards too.
        ranks: The ranks that it stands for, in ascending order.
        above: The index of the relay that it forwards to. None: it forwards to the owners.
    """

    process: int
    ranks: tuple[int, ...]
    above: int | None = None


def draw_relays(random: Random, owners: int) -> tuple[int, tuple[Relay, ...]]:
    """Draw hosts, of which some have a relay. Sometimes a relay of the second level gathers several hosts.

    Returns:
        The number of workers, and the relays, each after those that forward to it.
    """
    sizes = [random.choice((1, 2, 2, 3)) for _ in range(random.choice((1, 2, 2, 3)))]
    while sum(sizes) > _MAX_WORKERS:
        sizes.remove(max(sizes))
    ranks = list(range(sum(sizes)))
    if random.random() < 0.3:
        # Ranks need not be numbered host by host.
        random.shuffle(ranks)
    hosts = [tuple(sorted(ranks.pop() for _ in range(size))) for size in sizes]
    gathered = random.sample(hosts, random.randint(1, len(hosts))) if random.random() < 0.25 else []
    groups = [host for host in hosts if random.random() < 0.75] or hosts[:1]
    relays = [(host, len(groups) if host in gathered else None) for host in groups]
    if gathered:
        # It also gathers the workers of hosts without a relay.
        relays.append((tuple(sorted(rank for host in gathered for rank in host)), None))
    # Each process is at most one relay of the job.
    free, processes, new = random.sample(range(owners), owners), [], owners
    for _ in relays:
        if free and random.random() < 0.5:
            processes.append(free.pop())
        else:
            processes.append(new)
            new += 1
    return sum(sizes), tuple(Relay(p, group, above) for p, (group, above) in zip(processes, relays, strict=True))


def sum_tree(workers: int, relays: tuple[Relay, ...]) -> Tree:
    """Return the order of addition: members by their first rank, and in each relay likewise."""
    nodes: dict[int, int | Tree] = {rank: rank for rank in range(workers)}
    # Each relay comes after those that forward to it, so some of its members are sums already.
    for relay in relays:
        nodes[relay.ranks[0]] = tuple(nodes.pop(rank) for rank in relay.ranks if rank in nodes)
    return tuple(nodes[rank] for rank in sorted(nodes))


def address(process: int) -> str:
    """Return the address of an aggregator process."""
    return f"aggregator{process}:1"
