"""Groups that become jobs, with real aggregators: their ranks are threads of this process."""

import contextlib
import datetime
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from psum.client import Client, ConfigurationError, ConnectError
from psum.torch import rendezvous
from psum.torch.rendezvous import joining, own_aggregator
from psum.torch.rendezvous.exchange import Exchange
from tests.polling import wait_until
from tests.processes import running

ROOT = pathlib.Path(__file__).parents[3]

Make = Callable[..., list[Any]]


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PSUM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


@pytest.fixture
def store() -> Any:
    return dist.HashStore()


def connect_all(store: Any, size: int = 2, group_name: str = "", seconds: float = 30.0) -> list[Any]:
    """What each rank gets: its client or its error."""

    def connect(rank: int) -> Any:
        try:
            return rendezvous.connect(
                store, rank, size, timeout=datetime.timedelta(seconds=seconds), group_name=group_name
            )
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(connect, range(size)))


@contextlib.contextmanager
def job(store: Any, **named: Any) -> Iterator[list[Client]]:
    """A job of two ranks; its clients are closed at the end."""
    clients = connect_all(store, **named)
    try:
        assert all(isinstance(client, Client) for client in clients), clients
        yield clients
    finally:
        for client in clients:
            if isinstance(client, Client):
                client.close()


def total(clients: list[Client], key: str = "x") -> list[float]:
    """The sum of 1 and 2 as each rank gets it."""
    values = [np.full(1000, client.rank + 1.0) for client in clients]
    # Each client's stores are numbered by itself.
    operations = [client.store().push_pull_async(key, value) for client, value in zip(clients, values, strict=True)]
    for operation in operations:
        operation.result(30)
    return [float(value.max()) for value in values]


def own() -> own_aggregator.OwnAggregator:
    """The aggregator that this process has started last."""
    (found,) = [world.own for world in joining._worlds if world.own is not None and world.own.running]
    assert found is not None
    return found


def test_a_job_that_names_no_aggregators_starts_one_and_ends_it(store: Any) -> None:
    """Ranks find it through the store, groups of the job use it too, and it ends when the last has left."""
    with job(store) as clients:
        assert total(clients) == [3.0, 3.0]
        aggregator = own()
        thread = aggregator._thread
        pid = aggregator.pid
        assert {client.settings.aggregators for client in clients} == {(aggregator.address,)}
        assert [(client.local_rank, client.local_size) for client in clients] == [(0, 2), (1, 2)]
        # The same store again, as for a group that is made after another one.
        with job(store, group_name="3") as members:
            assert total(members) == [3.0, 3.0]
            assert [member.settings.job for member in members] == [f"{clients[0].settings.job}/3"] * 2
            assert members[0].settings.aggregators == (aggregator.address,)
        assert total(clients, "y") == [3.0, 3.0]
    thread.join(30)
    assert not thread.is_alive()
    assert not pathlib.Path(f"/proc/{pid}").exists()


def test_an_aggregator_that_was_killed_comes_back(store: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The job goes on where it was, at the same address."""
    with job(store) as clients:
        stores = [client.store() for client in clients]

        def add() -> float:
            values = [np.full(3, client.rank + 1.0) for client in clients]
            for operation in [s.push_pull_async("x", v) for s, v in zip(stores, values, strict=True)]:
                operation.result(30)
            return float(values[1][0])

        assert add() == 3.0
        aggregator = own()
        os.kill(aggregator.pid, signal.SIGKILL)
        assert add() == 3.0
        assert f"aggregator at {aggregator.address} was ended by signal 9 while this job needs it" in caplog.text
    aggregator._thread.join(30)
    assert not aggregator._thread.is_alive()


#: Two ranks in one process, which says where its aggregator is, and waits.
KILLED = """
import datetime, sys, threading
import numpy as np
import torch.distributed as dist
from psum.torch import rendezvous
from psum.torch.rendezvous import joining
store, clients = dist.HashStore(), {}
def run(rank):
    clients[rank] = rendezvous.connect(store, rank, 2, timeout=datetime.timedelta(seconds=60))
    clients[rank].store().push_pull("x", np.ones(100_000))
threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*[world.own.pid for world in joining._worlds if world.own], flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_when_the_process_is_killed() -> None:
    """The aggregator ends, though the thread that made the group is gone, and no shared memory stays."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as directory,
        running(
            [sys.executable, "-c", KILLED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PSUM_SHM_DIRECTORY": directory},
        ) as process,
    ):
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert os.listdir(directory)
        process.kill()
        # A process without a parent may stay a zombie, which has no files.
        wait_until(lambda: not pathlib.Path(f"/proc/{pid}/fd/0").exists())
        assert os.listdir(directory) == []


def test_settings_that_contradict_torch_fail_on_all_ranks(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one text that names both, at once."""
    monkeypatch.setenv("PSUM_RANK", "1")
    first, second = connect_all(store)
    assert isinstance(first, ConfigurationError)
    assert str(first) == str(second)
    assert "rank 0: PSUM_RANK=1 and init_process_group's rank=0 mean the same and differ" in str(first)


def test_an_aggregator_that_cannot_start_fails_on_all_ranks(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed is named; otherwise, its own output says why."""
    monkeypatch.setenv("PSUM_LISTEN", "192.0.2.1:0")
    first, second = connect_all(store)
    assert isinstance(first, ConfigurationError)
    assert str(first) == str(second)
    assert "rank 0: the aggregator of this host ended with status 1 before it was ready" in str(first)
    monkeypatch.setattr(own_aggregator, "NEEDED", ("grpc", "no_such_package"))
    first, _ = connect_all(store)
    assert "needs no_such_package, which is not installed: pip install 'psum[aggregator]'" in str(first)


def test_what_an_aggregator_needs_is_what_its_extra_installs() -> None:
    """The modules that are looked for are those of the packages in pyproject.toml."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["aggregator"]
    packages = {entry.partition(">")[0] for entry in extra}
    modules = {"grpc_health": "grpcio-health-checking", "grpc_reflection": "grpcio-reflection"}
    assert {modules.get(name, name.replace("_", "-")) for name in own_aggregator.NEEDED} == packages


def test_a_rank_that_does_not_come_is_named(store: Any) -> None:
    """After the group's timeout, by the rank that waits."""
    with pytest.raises(ConnectError, match=r"rank 0 waited 0.2 s for all ranks of the group, and rank 1 did not come"):
        rendezvous.connect(store, 0, 2, timeout=datetime.timedelta(seconds=0.2))


def test_a_store_that_has_ended_is_named() -> None:
    """With its address, where rank 0's process was."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=datetime.timedelta(seconds=1))
    address = f"127.0.0.1:{server.port}"
    del server
    with pytest.raises(ConnectError, match=f"no answer from torch's store .* at {address}"):
        rendezvous.connect(client, 1, 2, timeout=datetime.timedelta(seconds=5))
    assert threading.active_count() < 100


def test_ranks_do_not_meet_in_what_an_earlier_run_has_left(store: Any) -> None:
    """A store that torchrun's agents keep has reports of ranks that were killed, in any state."""
    with pytest.raises(ConnectError):
        rendezvous.connect(store, 0, 2, timeout=datetime.timedelta(seconds=0.05))
    with pytest.raises(ConnectError, match=r"rank 1 waited 0\.05 s for rank 0"):
        rendezvous.connect(store, 1, 2, timeout=datetime.timedelta(seconds=0.05))
    with ThreadPoolExecutor(2) as pool:
        found = [
            pool.submit(
                Exchange(store, rank, 2, timeout=30.0).decide,
                f"new {rank}",
                lambda reports, earlier: [reports, earlier],
            )
            # Rank 1 looks first, and finds the earlier meeting.
            for rank in (1, 0)
        ]
        assert [future.result() for future in found] == [[["new 0", "new 1"], 1]] * 2
