"""Faults of relays, and of the workers and aggregators around them, are the same to a job as those without relays."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from faults.aggregators import aggregators
from faults.training import LOCAL_SIZE, STEPS, hosts, training
from faults.watching import is_gone, wait_until
from psum import client as psum


def addresses(aggregators: list[Any]) -> list[str]:
    """Their addresses."""
    return [a.address for a in aggregators]


@pytest.fixture(scope="module")
def undisturbed_with_relays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a training with relays and without faults."""
    directory = tmp_path_factory.mktemp("undisturbed")
    with (
        aggregators(directory, 2) as pair,
        training(directory, addresses(pair), each=hosts(addresses(pair))) as trained,
    ):
        trained.wait_for_step(STEPS // 2)
        check_connections(pair)
        return trained.result()


def check_connections(pair: list[Any]) -> None:
    """Checks that each worker has one connection, and each pair of hosts one."""
    for index, aggregator in enumerate(pair):
        (host,) = [job for job in psum.fetch_status(aggregator.address).jobs if job.uplinks]
        (owner,) = [job for job in psum.fetch_status(aggregator.address).jobs if not job.uplinks]
        assert [worker.rank for worker in host.workers] == [LOCAL_SIZE * index, LOCAL_SIZE * index + 1]
        assert [list(worker.ranks) for worker in owner.workers] == [[0, 1], [2, 3]]
        assert {uplink.address for uplink in host.uplinks} == {a.address for a in pair}


def test_killed_relays_change_no_bit(
    make_aggregator: Callable[..., Any], make_training: Callable[..., Any], undisturbed_with_relays: dict[str, Any]
) -> None:
    """Each process is a relay and an owner of shards. One is killed, then the other one, then both at once."""
    pair = [make_aggregator() for _ in range(2)]
    training = make_training(addresses(pair), each=hosts(addresses(pair)))
    for victims in (pair[:1], pair[1:], pair):
        training.wait_for_step(training.steps + 4)
        for victim in victims:
            victim.process.kill()
        for victim in victims:
            victim.process.wait()
            victim.start()
    assert training.result() == undisturbed_with_relays
    for worker in training.workers:
        assert worker.log.count("is connected to aggregator") >= 2


def test_a_killed_relay_that_owns_nothing_changes_no_bit(
    make_aggregator: Callable[..., Any], make_training: Callable[..., Any], undisturbed_with_relays: dict[str, Any]
) -> None:
    """Its workers and the owners bring it back into its rounds."""
    owners, relays = ([make_aggregator() for _ in range(2)] for _ in range(2))
    training = make_training(addresses(owners), each=hosts(addresses(relays)), plane="inline")
    for victim in (*relays, owners[0]):
        training.wait_for_step(training.steps + 4)
        victim.end()
        victim.start()
    assert training.result() == undisturbed_with_relays


def test_a_relay_that_does_not_come_back_is_named_by_its_ranks(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any]
) -> None:
    """Its own workers name its address, and the other host's workers name all of its ranks."""
    pair = [make_aggregator("--worker-timeout", "1s") for _ in range(2)]
    owner = make_aggregator("--worker-timeout", "1s")
    workers = [
        make_worker(**each, aggregators=[owner.address], rank=rank, num_workers=4, reconnect_timeout=2.0)
        for rank, each in enumerate(hosts(addresses(pair)))
    ]
    for worker in workers:
        worker.send("push", key="first", size=100_000)
    for worker in workers:
        assert worker.next("sum")["error"] is None
    pair[1].end()
    for worker in workers:
        worker.send("push", key="second", size=100_000)
    for worker in workers[:2]:
        error = worker.next("sum")["error"]
        assert (error["kind"], error["ranks"]) == ("WorkerLostError", [2, 3])
    for worker in workers[2:]:
        error = worker.next("sum")["error"]
        assert (error["kind"], error["address"]) == ("AggregatorLostError", pair[1].address)


def says(worker: Any, text: str) -> bool:
    """Return whether a worker has logged this."""
    return text in worker.log


def test_a_worker_that_nobody_alive_knows_is_waited_for_as_one_that_never_came(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any]
) -> None:
    """It is killed together with its relay, before another rank of its host has come.

    The warnings say who never joined, also on the other host, and another process takes its place.
    """
    pair = [make_aggregator("--worker-timeout", "1s", "--warn-after", "1s") for _ in range(2)]
    given = [{"aggregators": addresses(pair), "rank": rank, "num_workers": 4} for rank in range(4)]
    by_rank = [settings | each for settings, each in zip(given, hosts(addresses(pair)), strict=True)]
    killed = make_worker(**by_rank[3])
    killed.next("joined")
    pair[1].process.kill()
    killed.close()
    pair[1].end()
    pair[1].start()
    workers = [make_worker(**settings) for settings in by_rank[:3]]
    for worker in workers:
        worker.send("push", key="first", size=1000, group_size=2)
    for worker in workers[:2]:
        wait_until(says, worker, "waits for rank 2 (never joined), rank 3 (never joined)", what="a warning")
    wait_until(says, workers[2], "waits for 1 of the 2 ranks of this group, which have not joined", what="a warning")
    workers.append(make_worker(**by_rank[3]))
    workers[3].send("push", key="first", size=1000, group_size=2)
    assert [worker.next("sum")["right"] for worker in workers] == [True] * 4


class Group:
    """Two hosts with a relay and two workers each. The workers of the second one are killed and replaced.

    Args:
        make_aggregator: Starts an aggregator.
        make_worker: Starts a worker.
        racks: How many relays there are above those of the hosts.
        elastic: The bounds of an elastic job.
    """

    def __init__(
        self,
        make_aggregator: Callable[..., Any],
        make_worker: Callable[..., Any],
        racks: int = 0,
        elastic: list[int] | None = None,
    ) -> None:
        owner, *self.relays = (make_aggregator("--elastic-timeout", "30s") for _ in range(3 + racks))
        self._above = "".join(f",{rack.address}/4" for rack in self.relays[2:])
        self._make_worker = make_worker
        self._common = {"aggregators": [owner.address], "num_workers": 4, "local_size": LOCAL_SIZE, "elastic": elastic}
        self.workers: dict[int, Any] = {}

    def start(self, *ranks: int) -> None:
        """Starts a worker of each of these ranks; they join."""
        for rank in ranks:
            relay = self.relays[rank // LOCAL_SIZE].address + self._above
            self.workers[rank] = self._make_worker(rank=rank, relay=relay, **self._common)
        for rank in ranks:
            self.workers[rank].next("joined")

    def push(self, *ranks: int, key: str = "first") -> None:
        """Workers push a key."""
        for rank in ranks:
            self.workers[rank].send("push", key=key, size=1000, group_size=LOCAL_SIZE)
            self.workers[rank].next("pushed")

    def kill(self, *ranks: int) -> None:
        """Kills workers. Their relay notices."""
        for rank in ranks:
            self.workers[rank].signal(signal.SIGKILL)
        for rank in ranks:
            wait_until(is_gone, self.relays[1].address, rank, what="its end is noticed")

    def check_sums(self) -> None:
        """All workers get the sum of all."""
        for worker in self.workers.values():
            event = worker.next("sum")
            assert (event["error"], event["right"]) == (None, True)


@pytest.mark.parametrize("elastic", [None, [1, 4]], ids=["plain", "elastic"])
@pytest.mark.parametrize("racks", [0, 1], ids=["one level", "two levels"])
def test_a_whole_group_that_took_part_in_nothing_can_be_replaced(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any], racks: int, elastic: list[int] | None
) -> None:
    """All workers of a relay are killed before their first push, while the other host waits for them. Other processes
    take their ranks one after the other, and all sums are right."""
    group = Group(make_aggregator, make_worker, racks, elastic)
    group.start(0, 1, 2, 3)
    group.push(0, 1)
    group.kill(2, 3)
    group.start(2)
    group.start(3)
    group.push(2, 3)
    group.check_sums()


@pytest.mark.parametrize("elastic", [None, [1, 4]], ids=["plain", "elastic"])
def test_the_first_worker_of_a_group_can_be_replaced_before_the_others_come(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any], elastic: list[int] | None
) -> None:
    """It is killed while it is alone at its relay. Nothing happens to the other host, which waits for both."""
    group = Group(make_aggregator, make_worker, elastic=elastic)
    group.start(0, 1)
    group.push(0, 1)
    group.start(2)
    group.kill(2)
    group.start(2)
    group.start(3)
    group.push(2, 3)
    group.check_sums()


def test_the_others_hear_at_once_that_a_whole_group_that_took_part_was_replaced(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any]
) -> None:
    """One process comes in its place. It belongs to the next run, in which it waits for the others."""
    group = Group(make_aggregator, make_worker)
    group.start(0, 1, 2, 3)
    group.push(0, 1, 2, 3)
    group.check_sums()
    group.push(0, 1, key="second")
    ended = [group.workers.pop(rank) for rank in (0, 1)]
    group.kill(2, 3)
    group.start(2)
    for worker in ended:
        error = worker.next("sum", timeout=10)["error"]
        assert (error["kind"], error["ranks"]) == ("WorkerLostError", [2, 3])
        assert f"pid {group.workers[2].process.pid} " in error["text"]
        assert "was started in their place" in error["text"]
        worker.close()
    group.start(0, 1, 3)
    group.push(0, 1, 2, 3)
    group.check_sums()
