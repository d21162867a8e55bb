"""The shortest step time that the links allow, for any software.

All links have the same rate in each direction, and all can be busy at once. The workers of one host count once, because
a system can sum on the host first and send only their sum.
"""

from tests.bench.netlab.placement import Placement


def least_seconds(placement: Placement, payload_bytes: int, bytes_per_second: float) -> float:
    """Returns the shortest time of a step in seconds. Packet headers do not count; they take 4 to 5 %.

    Args:
        placement: The placement of workers and aggregators.
        payload_bytes: Bytes that one worker push-pulls in a step.
        bytes_per_second: Rate of each link in each direction.
    """
    return least_link_bytes(placement, payload_bytes) / bytes_per_second


def least_link_bytes(placement: Placement, payload_bytes: int) -> float:
    """Returns the least number of bytes that the busiest link must carry in one direction in a step.

    If all aggregators run beside workers, this is the cost of an optimal all-reduce. With n hosts of workers and k
    dedicated aggregators, the bound assumes the shares that make all links equally busy, as in section 4 of the BytePS
    paper (OSDI 2020). The same bound applies to systems that use only some of the hosts, such as an all-reduce.
    """
    n, k = placement.hosts, placement.dedicated
    if not placement.beside:
        # A worker's link carries the whole payload in each direction. An aggregator's link carries its share per host.
        return payload_bytes * max(1.0, n / k)
    if k > n:
        # If dedicated aggregators outnumber the hosts of workers, they sum everything, and the workers' links are full.
        return float(payload_bytes) if n > 1 else 0.0
    beside, _ = shares(placement)
    # A host sends the shares that others own and receives their sums. Each other host sends it a copy of its own share.
    return payload_bytes * ((1 - beside) + (n - 1) * beside)


def shares(placement: Placement) -> tuple[float, float]:
    """Returns the best share of the bytes for one host with aggregators and workers, and for one dedicated aggregator.

    The shares of all hosts add up to 1. The placement must have aggregators beside workers, and at most as many
    dedicated aggregators as hosts with workers.
    """
    n, k = placement.hosts, placement.dedicated
    if n == 1:
        return 1.0, 0.0
    whole = n * n + k * n - 2 * k
    return (n - k) / whole, 2 * (n - 1) / whole
