"""What the processes of a group do to become a job: decided by rank 0 from what all ranks report."""

import dataclasses
import ipaddress
from collections.abc import Iterator, Sequence

from psum.client import ConfigurationError
from psum.runtime import rank_names
from psum.wire import is_local, join_address


@dataclasses.dataclass(frozen=True)
class Report:
    """What a rank tells rank 0.

    Attributes:
        host: Which host it runs on, or which of torchrun's agents there started it.
        address: The IP address by which the host reaches the store; empty if it has none.
        listen: Where its user wants an aggregator of this host to listen (PSUM_LISTEN); empty: anywhere.
        aggregators: The aggregators that its environment names.
        job: The job's name there; empty if there is none.
        restarts: How often torchrun has started the job's processes again.
        world: The job of the default group, if this process has one on psum.
        world_aggregators: That job's aggregators.
        tls: Whether it speaks TLS to aggregators.
        certificate: Whether an aggregator that it starts would have a certificate.
        mistakes: What is wrong with its settings.
    """

    host: str
    address: str = ""
    listen: str = ""
    aggregators: tuple[str, ...] = ()
    job: str = ""
    restarts: int = 0
    world: str = ""
    world_aggregators: tuple[str, ...] = ()
    tls: bool = False
    certificate: bool = False
    mistakes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Starter:
    """A rank that starts an aggregator.

    Attributes:
        rank: The rank.
        listen: Where the aggregator listens, as host:port; empty: by the address by which this host reaches `towards`.
        towards: The address of another host; empty if it is not needed.
    """

    rank: int
    listen: str
    towards: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all ranks do.

    Attributes:
        job: The job's name.
        hosts: The number of each rank's host, in the order of the lowest rank of each.
        aggregators: The aggregators that run already.
        starters: The ranks that start the others, one of each host, in the order in which all ranks list them.
        exposed: Whether other machines reach those, without TLS.
        mistakes: Why no rank can join. If there are any, nothing else counts.
    """

    job: str = ""
    hosts: tuple[int, ...] = ()
    aggregators: tuple[str, ...] = ()
    starters: tuple[Starter, ...] = ()
    exposed: bool = False
    mistakes: tuple[str, ...] = ()


def make_plan(reports: Sequence[Report], group_name: str, *, random: str, earlier: int) -> Plan:
    """Decides what all ranks do.

    Args:
        reports: The report of each rank.
        group_name: The group's name; empty for the default group.
        random: Part of the name of a job that has none. No other job may have the same.
        earlier: How often ranks have met in the same store before.
    """
    mistakes = tuple(_mistakes(reports))
    if mistakes:
        return Plan(mistakes=mistakes)
    first = reports[0]
    found: dict[str, int] = {}
    hosts = tuple(found.setdefault(report.host, len(found)) for report in reports)
    if group_name and first.world and all(report.world == first.world for report in reports):
        return Plan(f"{first.world}/{group_name}", hosts, first.world_aggregators)
    job = first.job or f"torch-{random}"
    # An aggregator keeps the places of a run that was killed. A name of its own does not have to wait for that.
    # torchrun's agents count only the restarts that they have caused themselves.
    run = max(earlier, *(report.restarts for report in reports))
    job += f".run-{run + 1}" if run else ""
    job += f"/{group_name}" if group_name else ""
    if first.aggregators or len(reports) == 1:
        return Plan(job, hosts, first.aggregators)
    try:
        starters = _starters(reports, [hosts.index(number) for number in range(len(found))])
    except ConfigurationError as error:
        return Plan(mistakes=error.mistakes)
    certified = all(reports[starter.rank].certificate for starter in starters)
    exposed = not certified and any(not is_local(starter.listen) for starter in starters)
    return Plan(job, hosts, (), starters, exposed)


def _mistakes(reports: Sequence[Report]) -> Iterator[str]:
    """Yields what is wrong with the settings of some ranks, and where ranks differ."""
    of: dict[str, list[int]] = {}
    for rank, report in enumerate(reports):
        for mistake in report.mistakes:
            of.setdefault(mistake, []).append(rank)
    for mistake, ranks in of.items():
        yield f"{rank_names(ranks)}: {mistake}"
    if of:
        return
    for variable, values in (
        ("PSUM_AGGREGATORS", [",".join(report.aggregators) for report in reports]),
        ("PSUM_JOB", [report.job for report in reports]),
    ):
        if len(set(values)) > 1:
            differing = [
                f"{value or 'not set'} on {rank_names(_where(values, value))}" for value in dict.fromkeys(values)
            ]
            yield f"{variable} must be the same on all ranks, and is {'; '.join(differing)}"
    bare = [rank for rank, report in enumerate(reports) if report.tls and not report.certificate]
    if bare and len(reports) > 1 and not reports[0].aggregators and not reports[0].world:
        yield (
            f"{rank_names(bare)}: PSUM_TLS_CA asks for TLS, but the aggregators that psum starts where none are named"
            " (PSUM_AGGREGATORS) would have no certificate: set PSUM_AGGREGATOR_TLS_CERT and PSUM_AGGREGATOR_TLS_KEY,"
            " name aggregators, or unset PSUM_TLS_CA"
        )


def _starters(reports: Sequence[Report], ranks: Sequence[int]) -> tuple[Starter, ...]:
    """Returns who starts an aggregator.

    Args:
        reports: The report of each rank.
        ranks: The lowest rank of each host.

    Raises:
        ConfigurationError: A host has no address for the others.
    """
    if len(ranks) == 1:
        return (Starter(ranks[0], reports[ranks[0]].listen or "127.0.0.1:0"),)
    addresses = {rank: reports[rank].address for rank in ranks}
    elsewhere = [address for address in addresses.values() if address and not ipaddress.ip_address(address).is_loopback]
    starters, mistakes = [], []
    for rank, address in addresses.items():
        if reports[rank].listen:
            starters.append(Starter(rank, reports[rank].listen))
        elif not address:
            mistakes.append(
                f"rank {rank}: its host has no address by which it reaches MASTER_ADDR, so the other hosts cannot reach"
                " an aggregator there: set PSUM_LISTEN there to an address and port of the host, or PSUM_AGGREGATORS"
            )
        elif elsewhere and ipaddress.ip_address(address).is_loopback:
            # The host of MASTER_ADDR itself, where that name often leads to a loopback address.
            starters.append(Starter(rank, "", elsewhere[0]))
        else:
            starters.append(Starter(rank, join_address(address, 0)))
    if mistakes:
        raise ConfigurationError(mistakes)
    return tuple(starters)


def advertised(listen: str, address: str) -> str:
    """Where other hosts reach an aggregator.

    Args:
        listen: Where it listens.
        address: Its host's address, for an aggregator that listens on all.
    """
    if listen.startswith("unix:"):
        return listen
    host, _, port = listen.rpartition(":")
    return join_address(address, int(port)) if host in ("0.0.0.0", "[::]") and address else listen


def _where(values: Sequence[str], value: str) -> list[int]:
    return [rank for rank, found in enumerate(values) if found == value]
