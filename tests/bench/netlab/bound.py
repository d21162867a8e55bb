"""The least time that the links allow for a step, whatever the software.

All links carry the same number of bytes per second in each direction, and all of them at once. The workers of one host
count once: a system that sums on the host first sends their sum only.
"""

from tests.bench.netlab.placement import Placement


def least_seconds(placement: Placement, payload_bytes: int, bytes_per_second: float) -> float:
    """The least time of a step. Headers of packets are not counted; they take 4 to 5 %.

    Args:
        placement: Where workers and aggregators are.
        payload_bytes: Bytes that one worker push-pulls in a step.
        bytes_per_second: What each link carries in each direction.
    """
    return least_link_bytes(placement, payload_bytes) / bytes_per_second


def least_link_bytes(placement: Placement, payload_bytes: int) -> float:
    """Bytes that the busiest link carries at least in one direction in a step.

    With aggregators beside workers only, this is an optimal all-reduce. With n hosts of workers and k dedicated
    aggregators, the shares of the dedicated ones and of those beside workers are chosen so that all links are equally
    busy, as in section 4 of the paper on BytePS (OSDI 2020). A system that uses only some of the hosts, such as an
    all-reduce, is measured by the same bound.
    """
    n, k = placement.hosts, placement.dedicated
    if not placement.beside:
        # Each worker's link carries everything once in each direction, each aggregator's its share for each host.
        return payload_bytes * max(1.0, n / k)
    if k > n:
        # More dedicated aggregators than hosts of workers: these sum everything, and the workers' links are full.
        return float(payload_bytes) if n > 1 else 0.0
    beside, _ = shares(placement)
    # A host sends what others own, and gets it back summed. Of what it owns, each other host sends it a copy.
    return payload_bytes * ((1 - beside) + (n - 1) * beside)


def shares(placement: Placement) -> tuple[float, float]:
    """The best share of the bytes for one host with aggregators and workers, and for one dedicated aggregator.

    All shares together are 1. The placement has aggregators beside workers and at most as many dedicated ones as hosts.
    """
    n, k = placement.hosts, placement.dedicated
    if n == 1:
        return 1.0, 0.0
    whole = n * n + k * n - 2 * k
    return (n - k) / whole, 2 * (n - 1) / whole
