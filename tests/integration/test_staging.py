"""Values in staging memory are pushed without a copy: same sums, and nothing left behind."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.client.core.ticket import Ticket
from psum.planes import Slots, shm
from tests.polling import wait_until
from tests.processes import running

SIZES = (20_000, 700_000, 1_000_001)


def begin(store: psum.Store, name: str, block: psum.Block) -> threading.Event:
    """Push-pulls a block in place; the event is set when it is done."""
    ended = threading.Event()
    ticket: Ticket = store.reserve(name, shape=(len(block.view) // 4,), element_type=psum.ElementType.FLOAT32)
    ticket.start(block.view, block.view, lambda error: None if error else ended.set(), block.offset)
    return ended


def sums(client: psum.Client) -> list[bytes]:
    """The values after some rounds with keys of many sizes, all in staging memory if there is some."""
    chance = np.random.default_rng(client.rank)
    store = client.store()
    blocks = []
    for size in SIZES:
        block = client.allocate(4 * size) or psum.Block(0, memoryview(bytearray(4 * size)))
        blocks.append(block)
        np.frombuffer(block.view, np.float32)[:] = chance.standard_normal(size)
    for _ in range(3):
        events = [begin(store, str(i), block) for i, block in enumerate(blocks)]
        assert all(event.wait(20) for event in events)
        for block in blocks:
            values = np.frombuffer(block.view, np.float32)
            values *= np.float32(0.25)
    return [bytes(block.view) for block in blocks]


@pytest.fixture
def make_pair(directory: pathlib.Path, make_fleet: Callable[..., Any]) -> Callable[[], Any]:
    """Two aggregators that share memory in the directory."""
    return lambda: make_fleet(2, shm_directory=str(directory))


def on_both(fleet: Any, work: Callable[[psum.Client], list[bytes]]) -> list[list[bytes]]:
    """The results of two workers with staging memory."""
    clients = [fleet.worker(rank, 2, staging=True) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, clients, timeout=60))
        list(pool.map(psum.Client.close, clients))
    return results


def test_nothing_is_copied_to_where_aggregators_read(
    make_pair: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No payload takes room in the worker's segment, and the sums are the same bits as with messages."""
    inline = make_pair().on_every_rank(2, lambda client: [bytes(b) for b in sums(client)], plane="inline")
    taken: list[int] = []

    class NoSlots(Slots):
        def take(self, size: int) -> int | None:
            taken.append(size)
            return None

    monkeypatch.setattr(shm, "Slots", NoSlots)
    assert on_both(make_pair(), sums) == inline
    assert taken == []


def test_connections_that_break_do_no_harm(make_pair: Callable[[], Any]) -> None:
    """The staging memory is opened again on each new stream."""
    fleet = make_pair()
    undisturbed = on_both(fleet, sums)
    fleet = make_pair()
    with fleet.cut_often(0.1):
        assert on_both(fleet, sums) == undisturbed


def test_a_round_that_waits_keeps_no_copy(make_pair: Callable[[], Any]) -> None:
    """The worker does not change its value until it has the sum, however late the other rank is."""
    fleet = make_pair()
    with fleet.worker(0, 2, staging=True) as zero, fleet.worker(1, 2, staging=True) as one:
        blocks = [client.allocate(4 << 20) for client in (zero, one)]
        assert blocks[0] is not None
        assert blocks[1] is not None
        for block in blocks:
            np.frombuffer(block.view, np.float32)[:] = 1.5
        first = begin(zero.store(), "w", blocks[0])
        # The aggregators return its credit after they have waited for a while.
        wait_until(
            lambda: zero.load().waiting_shards == zero.load().under_way_bytes == 0 and zero.load().operations > 0
        )
        assert all(
            not isinstance(contribution.obj, bytes)
            for server in fleet.servers
            for job in server._service.registry.jobs.values()
            for key in job.keys.values()
            for shard in key.shards.values()
            for contribution in shard.contributions.values()
        )
        second = begin(one.store(), "w", blocks[1])
        assert first.wait(10)
        assert second.wait(10)
        assert set(np.frombuffer(blocks[0].view, np.float32)) == {3.0}


def test_without_more_memory_there_is_none(
    directory: pathlib.Path, make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is full, no memory is shared, or staging was not asked for."""
    fleet = make_fleet(1, shm_directory=str(directory))
    for settings in ({"plane": "inline", "staging": True}, {}):
        with fleet.worker(0, 1, **settings) as client:
            assert client.allocate(100) is None
    with fleet.worker(0, 1, staging=True) as client:
        assert client.allocate(100) is not None
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        assert client.allocate(100) is None


def test_nothing_is_left_of_a_worker_after_kill_9(directory: pathlib.Path, make_fleet: Callable[..., Any]) -> None:
    """The aggregator removes it, at the latest when it gives up the worker's place."""
    fleet = make_fleet(1, shm_directory=str(directory), worker_timeout=0.2)
    program = (
        "import psum.client as psum, sys, time\n"
        "client = psum.connect(staging=True)\n"
        "assert client.allocate(1 << 20)\n"
        "print(flush=True)\n"
        "time.sleep(60)"
    )
    environ = os.environ | {"PSUM_AGGREGATORS": fleet.addresses[0], "PSUM_SHM_DIRECTORY": str(directory)}
    with running([sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert len(list(directory.iterdir())) == 2
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not list(directory.iterdir()))


def test_a_worker_that_sigterm_ends_takes_its_memory_along(
    directory: pathlib.Path, make_fleet: Callable[..., Any]
) -> None:
    """Its staging memory loses its name before the goodbye, so nothing stays if the aggregator ends first."""
    fleet = make_fleet(1, shm_directory=str(directory))
    with fleet.worker(0, 1, staging=True) as client:
        assert client.allocate(4096) is not None
        before = set(os.listdir(directory))
        ending = client.part(psum.WorkerLostError("rank 0 ends", ranks=[0]))
        assert len(before - set(os.listdir(directory))) >= 1
        assert ending is not None
        ending.result(10)
