"""The limits that an operator sets for jobs."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What jobs may use and how long they may wait. Each field is the setting of the same name, if there is one.

    Attributes:
        worker_timeout: Seconds for which the place of a vanished worker is kept.
        closed_timeout: The same if its stream was closed and it had taken part in some round, and for no relay; 0: as
            worker_timeout.
        elastic_timeout: The same as worker_timeout, for elastic jobs.
        elastic_closed_timeout: The same as closed_timeout, for elastic jobs.
        relay_timeout: Seconds for which the place of a relay is kept in an elastic job, which sets it to the
            worker_timeout of other jobs; 0: as worker_timeout.
        round_timeout: Seconds for which a round may wait.
        warn_after: Seconds after which a round that waits is reported.
        max_shards: How many shards one job may declare; every key has at least one.
        max_jobs: How many jobs may be in progress.
        memory_budget: Bytes that may be reserved for the sums of all jobs; 0: no limit.
    """

    worker_timeout: float = 30.0
    closed_timeout: float = 0.0
    elastic_timeout: float = 5.0
    elastic_closed_timeout: float = 1.0
    relay_timeout: float = 0.0
    round_timeout: float = 600.0
    warn_after: float = 30.0
    max_shards: int = 500_000
    max_jobs: int = 1000
    memory_budget: int = 0
