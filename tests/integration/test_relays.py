"""Relays with real servers and real clients: hosts whose workers hand everything to the aggregator beside them."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.aggregator import Server, Settings
from psum.aggregator.observe.loop_monitor import LoopMonitor
from psum.aggregator.observe.metrics import collect
from psum.v1 import aggregator_pb2 as pb
from tests.integration.conftest import PATIENCE_SECONDS, Fleet
from tests.polling import wait_until

#: Small shards, so that a key has many, and owners of each.
PARTITION_BYTES = 1 << 16

#: Elements of keys: one small shard, several shards, and large ones that other planes carry.
SIZES = (5, 40_000, 300_000)

#: How many workers each host has.
LOCAL_SIZE = 2

#: How many steps a training has.
STEPS = 3


def value(rank: int, size: int, step: int = 0) -> Any:
    """The values of a rank. Their sum depends on the order."""
    return np.random.default_rng([rank, size, step]).standard_normal(size).astype(np.float32)


def expected(size: int, step: int = 0, groups: Sequence[Sequence[int]] = ((0, 1), (2, 3))) -> bytes:
    """The sum over hosts of the sums over each host's ranks."""
    partials = []
    for group in groups:
        partial = value(group[0], size, step)
        for rank in group[1:]:
            partial = partial + value(rank, size, step)
        partials.append(partial)
    total = partials[0]
    for partial in partials[1:]:
        total = total + partial
    return total.tobytes()  # type: ignore[no-any-return]


def on_every_host(
    fleet: Fleet,
    work: Callable[[psum.Client], Any],
    *,
    relays: Sequence[str],
    num_workers: int = 0,
    **settings: Any,
) -> list[Any]:
    """Does the work on each rank of hosts of LOCAL_SIZE workers, with a relay each; returns the results by rank.

    The job may have more workers, which do not come.
    """
    ranks = LOCAL_SIZE * len(relays)

    def run(rank: int) -> Any:
        given = {"local_size": LOCAL_SIZE, "local_rank": rank % LOCAL_SIZE} | settings
        with fleet.worker(rank, num_workers or ranks, relay=relays[rank // LOCAL_SIZE], **given) as client:
            return work(client)

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks), timeout=PATIENCE_SECONDS))


def push_all(client: psum.Client, store: psum.Store, step: int) -> list[bytes]:
    """Pushes all keys at a time; returns the results."""
    arrays = [value(client.rank, size, step) for size in SIZES]
    futures = [store.push_pull_async(str(size), array, array) for size, array in zip(SIZES, arrays, strict=True)]
    for future in futures:
        future.result(PATIENCE_SECONDS)
    return [array.tobytes() for array in arrays]


def train(client: psum.Client) -> list[bytes]:
    """Broadcasts and some steps of all keys at a time; returns all results."""
    store = client.store()
    root = value(99, 1000) if client.rank == 0 else np.zeros(1000, np.float32)
    store.broadcast("weights", root)
    results = [root.tobytes()]
    for step in range(STEPS):
        results += push_all(client, store, step)
    return results


def all_expected() -> list[bytes]:
    return [value(99, 1000).tobytes(), *(expected(size, step) for step in range(STEPS) for size in SIZES)]


@pytest.mark.parametrize("plane", ["inline", "direct", "shm"])
def test_sums_are_those_of_hosts_then_of_the_fleet(make_fleet: Callable[..., Fleet], plane: str) -> None:
    """Two hosts of two workers, each with an aggregator that is relay and owner at once: bit for bit, on each plane."""
    fleet = make_fleet(2, plane=plane)
    results = on_every_host(fleet, train, relays=fleet.addresses, plane=plane, partition_bytes=PARTITION_BYTES)
    assert results == [all_expected()] * 4


class Interrupted:
    """Does something once, when all ranks are between two steps.

    Args:
        ranks: How many ranks there are.
        step: The step before which it is done.
        what: What is done, while the ranks already push that step.
    """

    def __init__(self, ranks: int, step: int, what: Callable[[], None]) -> None:
        self._step = step
        self._barrier = threading.Barrier(ranks + 1)
        self._thread = threading.Thread(target=self._run, args=[what])
        self._thread.start()

    def before(self, step: int) -> None:
        """To be called by each rank before each step."""
        if step == self._step:
            self._barrier.wait(PATIENCE_SECONDS)

    def join(self) -> None:
        self._thread.join(PATIENCE_SECONDS)

    def _run(self, what: Callable[[], None]) -> None:
        self._barrier.wait(PATIENCE_SECONDS)
        what()


def restart(fleet: Fleet, *indices: int, **settings: Any) -> None:
    """Ends some aggregators at once, without notice, and starts others at their addresses."""

    async def run() -> None:
        for index in indices:
            server = fleet.servers[index]
            for connection in server._service.connections:
                connection.abandon()
        await asyncio.gather(*(fleet.servers[index].stop(0) for index in indices))
        for index in indices:
            given = {"listen": (fleet.addresses[index],)} | settings
            fleet.servers[index] = Server(Settings(**given))
            await fleet.servers[index].start()

    fleet.thread.run(run(), PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("plane", "killed"),
    [("shm", (0,)), ("direct", (2,)), ("direct", (0, 2)), ("shm", (0, 1, 2))],
    ids=["relay", "owner", "both", "all"],
)
def test_a_training_survives_restarts(make_fleet: Callable[..., Fleet], plane: str, killed: tuple[int, ...]) -> None:
    """The relay of one host, an owner that is no relay, or all of them are started again in the middle of a step."""
    fleet = make_fleet(3, plane=plane)
    steps = 4
    interrupted = Interrupted(4, 2, lambda: restart(fleet, *killed, plane=plane))

    def work(client: psum.Client) -> list[bytes]:
        store, results = client.store(), []
        for step in range(steps):
            interrupted.before(step)
            results += push_all(client, store, step)
        return results

    results = on_every_host(
        fleet, work, relays=fleet.addresses[:2], plane=plane, partition_bytes=PARTITION_BYTES, keepalive=1.0
    )
    interrupted.join()
    assert results == [[expected(size, step) for step in range(steps) for size in SIZES]] * 4


def test_a_restarted_relay_does_not_wait_for_a_rank_that_has_left(make_fleet: Callable[..., Fleet]) -> None:
    """A rank leaves, then its relay and the owners are killed. The relay comes back with the ranks that stay."""
    fleet = make_fleet(2)
    relay = fleet.addresses[0]
    with ThreadPoolExecutor(3) as pool:

        def join(rank: int) -> psum.Client:
            way = {"relay": relay, "local_size": 2, "local_rank": rank} if rank < 2 else {"relay": "off"}
            return fleet.worker(rank, 3, keepalive=1.0, partition_bytes=PARTITION_BYTES, **way)

        clients = list(pool.map(join, range(3), timeout=PATIENCE_SECONDS))
        list(pool.map(lambda client: push_all(client, client.store(), 0), clients, timeout=PATIENCE_SECONDS))
        clients[1].close()
        restart(fleet, 0, 1)

        def is_back() -> bool:
            jobs = [job for address in fleet.addresses for job in psum.fetch_status(address).jobs]
            groups = [[(worker.rank, worker.left) for worker in job.workers] for job in jobs if job.uplinks]
            owners = [[list(worker.ranks) for worker in job.workers] for job in jobs if not job.uplinks]
            return groups == [[(0, False), (1, True)]] and owners == [[[0, 1], []]] * 2

        wait_until(is_back)
        list(pool.map(lambda client: client.close(), (clients[0], clients[2]), timeout=PATIENCE_SECONDS))


def test_two_levels(make_fleet: Callable[..., Fleet]) -> None:
    """Two hosts forward to a relay of their rack, which forwards to the owners; a third host has no relay."""
    fleet = make_fleet(4)
    one, two, rack, owner = fleet.addresses
    aggregators = (two, owner)
    relays = [f"{one}/2,{rack}/4", f"{two}/2,{rack}/4", "off"]
    results = on_every_host(fleet, train, relays=relays, partition_bytes=PARTITION_BYTES, aggregators=aggregators)

    def total(size: int, step: int) -> bytes:
        zero, *others = (value(rank, size, step) for rank in range(6))
        racks = (zero + others[0]) + (others[1] + others[2])
        return ((racks + others[3]) + others[4]).tobytes()  # type: ignore[no-any-return]

    assert results == [[value(99, 1000).tobytes(), *(total(size, step) for step in range(STEPS) for size in SIZES)]] * 6


def fails(client: psum.Client) -> psum.PsumError:
    """Waits until the job has failed; returns the error."""
    with pytest.raises(psum.PsumError) as failed:
        push_for_ever(client)
    return failed.value


def push_for_ever(client: psum.Client) -> None:
    """Pushes one key again and again."""
    store = client.store()
    while True:
        store.push_pull("w", np.ones(100_000, np.float32))


def test_an_owner_that_cannot_be_reached_is_named(
    make_fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers of a relay get the owner's address and the cause, if it was there when they asked for its processes
    and is gone when their group is complete."""
    monkeypatch.setattr(
        "psum.client.fleet._ask", lambda settings, route: ([()] * len(settings.aggregators), frozenset())
    )
    fleet = make_fleet(1, connect_timeout=0.5)
    nobody = "127.0.0.1:1"
    errors = on_every_host(fleet, fails, relays=fleet.addresses, aggregators=(*fleet.addresses, nobody), num_workers=3)
    for error in errors:
        assert isinstance(error, psum.UnreachableError), error
        assert nobody in str(error)
        assert "for ranks 0-1" in str(error)


def test_an_owner_that_is_lost_is_named(make_fleet: Callable[..., Fleet]) -> None:
    """An owner that ends and does not come back fails the job on all ranks, with its address."""
    fleet = make_fleet(3, reconnect_timeout=0.5)
    lost = fleet.addresses[2]
    began = threading.Barrier(4)

    def work(client: psum.Client) -> psum.PsumError:
        client.store().push_pull("w", np.ones(100_000, np.float32))
        if began.wait(PATIENCE_SECONDS) == 0:
            fleet.thread.run(fleet.servers[2].stop(0), PATIENCE_SECONDS)
        return fails(client)

    errors = on_every_host(fleet, work, relays=fleet.addresses[:2], partition_bytes=PARTITION_BYTES)
    for error in errors:
        assert isinstance(error, psum.UnreachableError), error
        assert lost in str(error)


def test_relaying_can_be_turned_off(make_fleet: Callable[..., Fleet]) -> None:
    """A worker that asks for a relay where there is none is told what to do."""
    fleet = make_fleet(1, relaying=False)
    with pytest.raises(psum.DeniedError, match="PSUM_RELAY=off"):
        fleet.worker(0, 4, relay=fleet.addresses[0], local_size=2)


async def vanish(client: psum.Client) -> None:
    """Ends a worker's connection, and opens no other."""
    for task in client._membership._tasks:
        task.cancel()
    for connection in client._membership.connections:
        await connection.abandon()


def test_a_lost_worker_is_named_on_all_hosts(make_fleet: Callable[..., Fleet]) -> None:
    """A worker whose process ends is named, and not the relay or its group."""
    fleet = make_fleet(2, worker_timeout=0.5)
    ready = threading.Barrier(4)

    def work(client: psum.Client) -> psum.PsumError | None:
        client.store().push_pull("w", np.ones(4, np.float32))
        ready.wait(PATIENCE_SECONDS)
        if client.rank == 3:
            assert client._thread is not None
            client._thread.run(vanish(client), PATIENCE_SECONDS)
            return None
        return fails(client)

    *errors, none = on_every_host(fleet, work, relays=fleet.addresses)
    assert none is None
    for error in errors:
        assert isinstance(error, psum.WorkerLostError), error
        assert list(error.ranks) == [3]
        assert str(error).startswith("rank 3 of job")


@pytest.mark.parametrize("drained", [(0,), (0, 1)], ids=["one host", "all hosts"])
def test_a_rolling_restart_costs_no_step(make_fleet: Callable[..., Fleet], drained: tuple[int, ...]) -> None:
    """Aggregators that are relay and owner at once drain in the middle of a step, and do not wait for themselves."""
    fleet = make_fleet(2)
    steps, took = 4, []

    async def drain() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(fleet.servers[index].stop(PATIENCE_SECONDS) for index in drained))
        took.append(loop.time() - began)
        for index in drained:
            fleet.servers[index] = Server(Settings(listen=(fleet.addresses[index],)))
            await fleet.servers[index].start()

    interrupted = Interrupted(4, 2, lambda: fleet.thread.run(drain(), PATIENCE_SECONDS))

    def work(client: psum.Client) -> list[bytes]:
        store, results = client.store(), []
        for step in range(steps):
            interrupted.before(step)
            results += push_all(client, store, step)
        return results

    results = on_every_host(fleet, work, relays=fleet.addresses, partition_bytes=PARTITION_BYTES)
    interrupted.join()
    assert results == [[expected(size, step) for step in range(steps) for size in SIZES]] * 4
    assert took[0] < PATIENCE_SECONDS / 3


def test_what_waits_for_other_groups_is_shown(make_fleet: Callable[..., Fleet]) -> None:
    """The status of a relay lists the shards that it has forwarded, which wait for no rank of its group; its metrics
    count them."""
    fleet = make_fleet(2)
    service = fleet.servers[0]._service
    shown = threading.Event()
    found: list[tuple[pb.JobStatus, dict[str, float]]] = []

    def relayed() -> pb.JobStatus:
        return next(job for job in service.status().jobs if job.uplinks)

    async def metrics() -> dict[str, float]:
        monitor = LoopMonitor()
        families = collect(service, monitor, 0.0)
        counted = {sample.name: sample.value for family in families for sample in family.samples}
        monitor.close()
        return counted

    def work(client: psum.Client) -> None:
        store, array = client.store(), np.ones(100_000, np.float32)
        store.push_pull("w", array)
        if client.rank >= 2:
            assert shown.wait(PATIENCE_SECONDS)
        future = store.push_pull_async("w", array, array)
        if client.rank == 0:
            wait_until(lambda: sum(uplink.outstanding_shards for uplink in relayed().uplinks) == 8)
            found.append((relayed(), fleet.thread.run(metrics(), PATIENCE_SECONDS)))
            shown.set()
        future.result(PATIENCE_SECONDS)

    on_every_host(fleet, work, relays=fleet.addresses, partition_bytes=PARTITION_BYTES)
    [(status, counted)] = found
    assert status.rounds_waiting == len(status.rounds) == 8
    assert all(not round.waiting_for and round.round == 1 for round in status.rounds)
    assert counted["psum_relay_outstanding_shards"] == 8
    assert counted["psum_relay_ranks_connected"] == counted["psum_relay_ranks"] == 2
    assert counted["psum_relay_uplinks_connected"] == counted["psum_relay_uplinks"] == 2
    assert counted["psum_relay_forwarded_bytes_total"] == 2 * 400_000
    assert counted["psum_relay_result_bytes_total"] == 400_000


def test_another_process_may_take_the_place_of_a_worker_that_took_part_in_nothing(
    make_fleet: Callable[..., Fleet],
) -> None:
    """The relay has joined the job for the first process, and joins it anew for the other."""
    fleet = make_fleet(2)
    given: dict[str, Any] = {"relay": f"{fleet.addresses[0]}/2"}
    with fleet.worker(0, 3, **given) as zero, fleet.worker(2, 3, relay="off") as two:
        gone = fleet.worker(1, 3, **given)
        assert gone._thread is not None
        gone._thread.run(vanish(gone), PATIENCE_SECONDS)
        with fleet.worker(1, 3, **given) as one, ThreadPoolExecutor(3) as pool:
            arrays = [value(rank, 300_000) for rank in range(3)]
            for done in pool.map(lambda c: c.store().push_pull("w", arrays[c.rank]), (zero, one, two)):
                assert done is None
        gone.close()
    assert {array.tobytes() for array in arrays} == {expected(300_000, groups=[(0, 1), (2,)])}
