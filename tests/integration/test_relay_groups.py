"""Workers whose relays sum on their host first: real clients, relays and owners of shards."""

import pathlib
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.cli.timeline.step_times import Report
from psum.cli.timeline.traces import load
from psum.wire import CODECS, IDENTITY, report_of
from tests.integration.test_codecs import Shifting

PATIENCE_SECONDS = 30.0

#: Shards of 64 KiB, so that some tensors have many.
PARTITION_BYTES = 1 << 16

#: The numbers of elements of the tensors.
SIZES = (0, 1, 1000, 100_001)


def values(rank: int) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """What a rank contributes."""
    return [np.random.default_rng([rank, size]).standard_normal(size).astype(np.float32) for size in SIZES]


def summed(groups: Sequence[Sequence[int]]) -> list[bytes]:
    """The sums of `values`, group by group and then in the order of the groups."""
    totals = [
        sum_of([sum_of([values(rank)[index] for rank in group]) for group in groups]) for index in range(len(SIZES))
    ]
    return [total.tobytes() for total in totals]


def sum_of(parts: Sequence[Any]) -> Any:
    """The parts added from left to right."""
    return sum(parts[1:], parts[0])


def push_all(client: psum.Client) -> list[bytes]:
    """Sums a rank's values twice: the second round shows that the first one has ended well."""
    store = client.store()
    results: list[bytes] = []
    for _ in range(2):
        outs = values(client.rank)
        futures = [store.push_pull_async(index, out, priority=-index) for index, out in enumerate(outs)]
        for future in futures:
            future.result(PATIENCE_SECONDS)
        results = [out.tobytes() for out in outs]
    return results


def by(relay: str, size: int, **others: Any) -> dict[str, Any]:
    """The settings of a worker in a group."""
    return {"relay": relay, "local_size": size, "partition_bytes": PARTITION_BYTES, **others}


@pytest.mark.parametrize("plane", ["shm", "inline"])
def test_hosts_of_two_workers_sum_through_their_relays(make_fleet: Any, plane: str) -> None:
    """Each host is added up first. Every worker has one connection, and every pair of hosts one."""
    fleet = make_fleet(2)
    here, there = fleet.addresses
    settings = [by(relay, 2, plane=plane) for relay in (here, here, there, there)]
    statuses: list[Any] = []
    together = threading.Barrier(4)

    def work(client: psum.Client) -> list[bytes]:
        results = push_all(client)
        assert client.planes == (plane,)
        together.wait(PATIENCE_SECONDS)
        if client.rank == 0:
            statuses.extend(psum.fetch_status(address) for address in fleet.addresses)
        together.wait(PATIENCE_SECONDS)
        return results

    assert fleet.on_ranks(settings, work) == [summed([(0, 1), (2, 3)])] * 4
    for status, group in zip(statuses, ([0, 1], [2, 3]), strict=True):
        host = next(job for job in status.jobs if job.uplinks)
        owner = next(job for job in status.jobs if not job.uplinks)
        assert [worker.rank for worker in host.workers] == group
        assert [uplink.address for uplink in host.uplinks] == list(fleet.addresses)
        assert [list(worker.ranks) for worker in owner.workers] == [[0, 1], [2, 3]]


def test_hosts_may_have_different_numbers_of_workers_or_no_relay(make_fleet: Any) -> None:
    """The groups' first ranks order the additions, also where ranks of a host do not follow each other."""
    fleet = make_fleet(3)
    first, second, third = fleet.addresses
    alone = {"partition_bytes": PARTITION_BYTES}
    settings = [by(first, 3), by(second, 2), by(first, 3), alone, by(second, 2), by(first, 3), by(third, 1)]
    assert fleet.on_ranks(settings, push_all) == [summed([(0, 2, 5), (1, 4), (3,), (6,)])] * 7


def test_without_relays_the_sum_is_flat(make_fleet: Any) -> None:
    """PSUM_RELAY=off connects to every aggregator."""
    fleet = make_fleet(2)
    settings = [by("off", 2)] * 4
    assert fleet.on_ranks(settings, push_all) == [summed([(0,), (1,), (2,), (3,)])] * 4


@pytest.mark.parametrize("root", [0, 1])
def test_a_broadcast_reaches_all_hosts(make_fleet: Any, root: int) -> None:
    """Rank 0's value goes up from its relay once and down to all ranks, whichever host the root is on."""
    fleet = make_fleet(2)
    relays = [fleet.addresses[root], *[fleet.addresses[1 - root]] * 2, fleet.addresses[root]]

    def work(client: psum.Client) -> list[bytes]:
        store = client.store()
        arrays = values(client.rank)
        for index, array in enumerate(arrays):
            store.broadcast(index, array)
        return [array.tobytes() for array in arrays]

    results = fleet.on_ranks([by(relay, 2) for relay in relays], work)
    assert results == [[value.tobytes() for value in values(0)]] * 4


def test_half_precision_is_rounded_once_for_each_level(make_fleet: Any) -> None:
    """A relay forwards its sum in the key's type."""
    fleet = make_fleet(2)
    here, there = fleet.addresses
    numbers = [np.random.default_rng(rank).standard_normal(5000).astype(np.float16) for rank in range(6)]

    def rounded(parts: Sequence[Any]) -> Any:
        return sum_of([part.astype(np.float32) for part in parts]).astype(np.float16)

    def work(client: psum.Client) -> bytes:
        value = numbers[client.rank].copy()
        client.store().push_pull("w", value)
        return value.tobytes()

    settings = [by(relay, 3) for relay in (here, here, here, there, there, there)]
    expected = rounded([rounded(numbers[:3]), rounded(numbers[3:])])
    assert fleet.on_ranks(settings, work) == [expected.tobytes()] * 6
    assert expected.tobytes() != rounded(numbers).tobytes()


def test_a_codec_encodes_at_both_levels(make_fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums and broadcasts are right, also for the root's own group, whose relay sends the value on without a result."""
    monkeypatch.setitem(CODECS, IDENTITY, Shifting())
    fleet = make_fleet(2)
    here, there = fleet.addresses

    def work(client: psum.Client) -> list[bytes]:
        array = values(client.rank)[-1]
        client.store().broadcast("w", array)
        return [*push_all(client), array.tobytes()]

    expected = [*summed([(0, 1), (2, 3)]), values(0)[-1].tobytes()]
    assert fleet.on_ranks([by(relay, 2) for relay in (here, here, there, there)], work) == [expected] * 4


def push_for_ever(client: psum.Client) -> None:
    """Push-pulls until that fails."""
    store = client.store()
    while True:
        store.push_pull_async("w", np.ones(3, np.float32)).result(PATIENCE_SECONDS)


def test_a_worker_of_another_host_is_told_who_is_in_the_group(make_fleet: Any) -> None:
    """The ranks in the group go on: it was the other worker's mistake."""
    fleet = make_fleet(2)
    relay = by(fleet.addresses[0], 2)
    with (
        fleet.worker(0, 4, **relay),
        fleet.worker(1, 4, **relay),
        pytest.raises(psum.DisagreementError, match=r"there are rank 0 .*, rank 1 .*; refused rank 2, .*PSUM_RELAY"),
    ):
        fleet.worker(2, 4, **relay)


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [({"num_workers": 6}, "(4.*6|6.*4)"), ({"local_size": 3}, "(2.*3|3.*2)"), ({"partition_bytes": 4096}, "4096")],
)
def test_workers_of_a_group_that_disagree_are_told_both_sides(
    make_fleet: Any, change: dict[str, Any], both_sides: str
) -> None:
    """The worker that joined first fails in its next operation, the other one when it joins."""
    fleet = make_fleet(2)
    relay = by(fleet.addresses[0], 2)
    with fleet.worker(0, 4, **relay) as zero:
        future = zero.store().push_pull_async("w", np.ones(3, np.float32))
        with pytest.raises(psum.DisagreementError, match=both_sides):
            fleet.worker(**{"rank": 1, "num_workers": 4} | relay | change)
        error = future.exception(PATIENCE_SECONDS)
        assert isinstance(error, psum.DisagreementError)


def test_relays_with_different_lists_of_owners_are_told_both_lists(make_fleet: Any) -> None:
    """All ranks of both hosts fail, with the lists."""
    fleet = make_fleet(3)
    here, there, third = fleet.addresses
    settings = [by(here, 2, aggregators=(here, there))] * 2 + [by(there, 2, aggregators=(here, third))] * 2
    for error in fleet.failures(settings, push_for_ever):
        assert isinstance(error, psum.DisagreementError)
        assert f"ranks 0-1 have {[here, there]}" in str(error)
        assert f"ranks 2-3 have {[here, third]}" in str(error)


def test_a_relay_that_cannot_reach_an_owner_names_it(make_fleet: Any) -> None:
    """Its workers get the error at the start, after PSUM_CONNECT_TIMEOUT."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        fleet = make_fleet(1)
        relay = by(fleet.addresses[0], 2, aggregators=(fleet.addresses[0], nobody), connect_timeout=0.3)
        with pytest.raises(psum.ConnectError, match=rf"{nobody} within 0.3 s .*Connection refused") as raised:
            fleet.worker(0, 2, **relay)
        assert raised.value.address == nobody


def test_relays_in_a_circle_are_noticed(make_fleet: Any) -> None:
    """A relay that forwards to itself, under another address, would wait for itself for ever."""
    fleet = make_fleet(1, listen=("127.0.0.1:0", "127.0.0.2:0"))
    one, other = fleet.servers[0].addresses
    for error in fleet.failures([by(f"{one},{other}/2", 2)] * 2, push_for_ever):
        assert isinstance(error, psum.DisagreementError)
        assert other in str(error)


def test_the_status_of_an_incomplete_group_is_that_of_a_relay(make_fleet: Any) -> None:
    """It says where the sums will go, and does not guess which ranks will come."""
    fleet = make_fleet(2)
    with fleet.worker(1, 4, **by(fleet.addresses[0], 2)):
        (job,) = report_of(psum.fetch_status(fleet.addresses[0]))["jobs"]
    assert [(uplink["address"], uplink["state"]) for uplink in job["uplinks"]] == [
        (address, "not connected") for address in fleet.addresses
    ]
    assert (job["num_workers"], job["not_joined"]) == (2, [])


def test_a_timeline_names_the_slow_rank_of_another_host(make_fleet: Any, tmp_path: pathlib.Path) -> None:
    """Each host's files show how long its sums were on their way between the hosts."""
    fleet = make_fleet(2)
    here, there = fleet.addresses
    trace = {"trace_dir": str(tmp_path), "trace_start_step": 1, "trace_end_step": 2, "partition_bytes": 1 << 20}

    def work(client: psum.Client) -> None:
        store = client.store()
        for _ in range(3):
            if client.rank == 3:
                time.sleep(0.2)
            store.push_pull("w", np.ones(700_000, np.float32))

    fleet.on_ranks([by(relay, 2, **trace) for relay in (here, here, there, there)], work)
    report = Report(load(sorted(tmp_path.iterdir())))
    assert report.slowest()[0].rank == 3
    assert report.mean([0, 1])["wait"] > 0.05
    assert report.mean()["forward"] > 0
