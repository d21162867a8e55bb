"""Workers of an elastic job with relays are killed, and replaced through their relay. All hold the same bits."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any, Final

import pytest

from faults.aggregators import AggregatorProcess, aggregators
from faults.elastic_training import ElasticTraining, ElasticWorker

#: How many workers a host has.
LOCAL_SIZE: Final = 2

#: A state that takes a while to transfer.
LARGE: Final = 96 << 20


class Job:
    """A training of two hosts with a relay and two workers each, and two aggregators elsewhere.

    Args:
        directory: Directory for its files.
        processes: The aggregators: first the owners of shards, then the relays.
        given: What ElasticTraining takes.
    """

    def __init__(self, directory: pathlib.Path, processes: list[AggregatorProcess], **given: Any) -> None:
        self.owners, self.relays = processes[:2], processes[2:]
        addresses = [each.address for each in self.owners]
        given |= {"num_workers": 4, "elastic": (1, 6)}
        self.training = ElasticTraining(directory, addresses, local_size=LOCAL_SIZE, reconnect_timeout=30.0, **given)

    def start(self, *ranks: int, host: int | None = None, **given: Any) -> list[ElasticWorker]:
        """Start workers, each at the relay of its host, or all at that of one host."""
        relays = [self.relays[rank // LOCAL_SIZE if host is None else host].address for rank in ranks]
        return [self.training.start(rank, relay=relay, **given)[0] for rank, relay in zip(ranks, relays, strict=True)]

    def close(self) -> None:
        """Kill all workers."""
        self.training.close()


@pytest.fixture
def job(tmp_path: pathlib.Path) -> Iterator[Job]:
    with aggregators(tmp_path, 4) as processes, contextlib.closing(Job(tmp_path / "training", processes)) as made:
        yield made


def test_a_killed_worker_is_replaced_through_its_relay(job: Job) -> None:
    """Its replacement gets the state of the others, and has their bits from then on. So does another process that has
    moved to the other host, and one of a rank that the job did not have."""
    workers = job.start(0, 1, 2, 3)
    workers[1].await_batch(3)
    workers[3].kill()
    workers[1].await_event(lambda event: event.get("members") == [0, 1, 2], "step without rank 3")
    [third] = job.start(3)
    workers[1].await_batch(third.await_join() + 3)
    third.kill()
    [third] = job.start(3, host=0)
    third.await_join()
    [fifth] = job.start(5, host=1)
    workers[1].await_batch(fifth.await_join() + 3)
    job.training.check([0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 5])


def test_a_group_that_was_lost_begins_anew(job: Job) -> None:
    """Both workers of a host are killed, and replaced through their relay, which has no group then. The replacements
    are started like the first workers: they hear from the owners that they join a running job."""
    workers = job.start(0, 1, 2, 3)
    workers[1].await_batch(3)
    for worker in workers[2:]:
        worker.kill()
    workers[1].await_event(lambda event: event.get("members") == [0, 1], "step without ranks 2 and 3")
    replaced = job.start(2, 3)
    last = max(worker.await_join() for worker in replaced)
    workers[1].await_batch(last + 3)
    job.training.check([0, 1, 2, 3], [0, 1], [0, 1, 2, 3])


@pytest.mark.parametrize("killed", ["relay of the donor", "relay of the newcomer", "owner"])
def test_what_is_killed_during_a_transfer(tmp_path: pathlib.Path, killed: str) -> None:
    """The transfer goes on when it is back. Nobody is lost."""
    with (
        aggregators(tmp_path, 4) as processes,
        contextlib.closing(Job(tmp_path / "training", processes, size=LARGE)) as job,
    ):
        workers = job.start(0, 1, 2, 3)
        workers[1].await_batch(3)
        workers[3].kill()
        workers[1].await_event(lambda event: event.get("members") == [0, 1, 2], "step without rank 3")
        [third] = job.start(3)
        job.training.await_mark(workers[0], "gives")
        victim = {"relay of the donor": job.relays[0], "relay of the newcomer": job.relays[1]}.get(
            killed, job.owners[1]
        )
        victim.end()
        victim.start()
        workers[1].await_batch(third.await_join() + 3)
        job.training.check([0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3])


def test_workers_join_through_relays_of_relays(tmp_path: pathlib.Path) -> None:
    """Two hosts with a relay each forward to the relay of their rack, and rank 4 is elsewhere. A worker is killed and
    replaced through both levels. Then the rack's relay is killed with a worker, and started again. The last worker of
    that host is killed too: the host's group begins anew."""
    with aggregators(tmp_path, 5) as processes:
        owners, (rack, *hosts) = processes[:2], processes[2:]
        given: dict[str, Any] = {"num_workers": 5, "elastic": (1, 6), "local_size": LOCAL_SIZE}
        training = ElasticTraining(
            tmp_path / "training", [each.address for each in owners], reconnect_timeout=30.0, **given
        )

        def start(rank: int, **more: Any) -> ElasticWorker:
            relay = f"{hosts[rank // LOCAL_SIZE].address},{rack.address}/4" if rank < 4 else "off"
            return training.start(rank, relay=relay, **more)[0]

        with contextlib.closing(training):
            workers = [start(rank) for rank in range(5)]
            workers[1].await_batch(3)
            workers[3].kill()
            workers[1].await_event(lambda event: event.get("members") == [0, 1, 2, 4], "step without rank 3")
            third = start(3)
            workers[1].await_batch(third.await_join() + 3)
            workers[2].kill()
            rack.end()
            rack.start()
            workers[1].await_event(lambda event: event.get("members") == [0, 1, 3, 4], "step without rank 2")
            third.kill()
            workers[1].await_event(lambda event: event.get("members") == [0, 1, 4], "step without ranks 2 and 3")
            [second, third] = [start(rank) for rank in (2, 3)]
            last = max(second.await_join(), third.await_join())
            workers[4].await_batch(last + 3)
            training.check([0, 1, 2, 3, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4], [0, 1, 3, 4], [0, 1, 4], [0, 1, 2, 3, 4])
