"""Which workers and aggregators run on which host."""

import dataclasses

from psum.cli.bench.cases import count


@dataclasses.dataclass(frozen=True)
class Placement:
    """Numbers of hosts, workers and aggregators. Hosts with workers come first, dedicated hosts follow.

    Attributes:
        hosts: Number of hosts with workers.
        local: Number of workers on each of them.
        beside: Number of aggregators on each of them, beside the workers.
        dedicated: Number of hosts that run one aggregator each and no worker.
    """

    hosts: int
    local: int = 1
    beside: int = 1
    dedicated: int = 0

    @property
    def workers(self) -> int:
        """The number of workers on all hosts."""
        return self.hosts * self.local

    @property
    def all_hosts(self) -> int:
        """The number of hosts of both kinds."""
        return self.hosts + self.dedicated

    @property
    def aggregator_hosts(self) -> list[int]:
        """The host of each aggregator."""
        beside = [host for host in range(self.hosts) for _ in range(self.beside)]
        return [*beside, *range(self.hosts, self.all_hosts)]

    def host_of(self, rank: int) -> int:
        """The host of a worker. The ranks of one host are consecutive."""
        return rank // self.local

    @property
    def title(self) -> str:
        """The placement in words: '4 hosts of 1 worker and 1 aggregator, 2 dedicated aggregators'."""
        each = count(self.local, "worker")
        if self.beside:
            each += f" and {count(self.beside, 'aggregator')}"
        hosts = f"{count(self.hosts, 'host')} of {each}"
        return f"{hosts}, {count(self.dedicated, 'dedicated aggregator')}" if self.dedicated else hosts
