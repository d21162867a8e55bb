"""What `psum launch` runs."""

import dataclasses
from collections.abc import Mapping, Sequence

from psum.client.elastic_range import Elastic


@dataclasses.dataclass(frozen=True)
class LocalJob:
    """A job on this machine.

    Attributes:
        command: The command of each worker.
        workers: The number of workers.
        aggregators: The number of aggregators, at least one.
        processes: The number of processes of each aggregator.
        plane: The plane of payloads.
        grace: How many seconds processes may take to end before they are killed.
        hosts: To simulate several hosts, a directory for the shared memory of each. Workers and aggregators are
            distributed over them in turn. Empty for one host.
        environ: Additional environment variables for all processes.
        elastic: With how many workers the job goes on; None if it ends when one fails.
        replace: Whether a worker of an elastic job that has failed is replaced by a new process.
    """

    command: Sequence[str]
    workers: int
    aggregators: int
    plane: str
    processes: int = 1
    grace: float = 10.0
    hosts: Sequence[str] = ()
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    elastic: Elastic | None = None
    replace: bool = True
