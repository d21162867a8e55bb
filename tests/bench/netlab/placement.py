"""Which host has which workers and which aggregators."""

import dataclasses

from psum.cli.bench.cases import count


@dataclasses.dataclass(frozen=True)
class Placement:
    """Hosts with workers come first, hosts with one aggregator each and no worker follow.

    Attributes:
        hosts: Hosts with workers.
        local: Workers on each of them.
        beside: Aggregators on each of them, beside the workers.
        dedicated: Hosts with an aggregator alone.
    """

    hosts: int
    local: int = 1
    beside: int = 1
    dedicated: int = 0

    @property
    def workers(self) -> int:
        """All workers."""
        return self.hosts * self.local

    @property
    def all_hosts(self) -> int:
        """All hosts, of both kinds."""
        return self.hosts + self.dedicated

    @property
    def aggregator_hosts(self) -> list[int]:
        """The host of each aggregator."""
        beside = [host for host in range(self.hosts) for _ in range(self.beside)]
        return [*beside, *range(self.hosts, self.all_hosts)]

    def host_of(self, rank: int) -> int:
        """The host of a worker. Ranks of one host follow each other."""
        return rank // self.local

    @property
    def title(self) -> str:
        """For people: '4 hosts of 1 worker and 1 aggregator, 2 dedicated aggregators'."""
        each = count(self.local, "worker")
        if self.beside:
            each += f" and {count(self.beside, 'aggregator')}"
        hosts = f"{count(self.hosts, 'host')} of {each}"
        return f"{hosts}, {count(self.dedicated, 'dedicated aggregator')}" if self.dedicated else hosts
