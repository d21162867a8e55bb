"""Faults of relays, and of the workers and aggregators around them, are the same to a job as those without relays."""

from collections.abc import Callable
from typing import Any

import pytest

from faults.aggregators import aggregators
from faults.training import LOCAL_SIZE, STEPS, hosts, training
from faults.watching import wait_until
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
