"""Workers on an aggregator's host share memory with it: same sums, nothing left behind, messages if it cannot be."""

import contextlib
import errno
import gc
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
from tests.integration.many_sizes import message_bytes, sums
from tests.polling import wait_until
from tests.processes import running
from tests.signals import interrupts_raise
from tests.silent_server import silent_server


@pytest.fixture
def make_fleet(directory: pathlib.Path, make_fleet: Callable[..., Any]) -> Callable[..., Any]:
    """Aggregators that share memory in the directory."""
    return lambda count, **settings: make_fleet(count, **{"shm_directory": str(directory)} | settings)


def test_the_sums_are_those_of_messages_bit_for_bit(make_fleet: Callable[..., Any]) -> None:
    """With two aggregators, also if one of three workers sends messages while the others share memory."""
    inline = make_fleet(2).on_every_rank(3, sums, plane="inline")
    assert make_fleet(2).on_every_rank(3, sums, plane="shm") == inline

    def mixed(client: psum.Client) -> list[bytes]:
        assert set(client.planes) == {"inline" if client.rank == 1 else "shm"}
        return sums(client)

    fleet = make_fleet(2)
    planes = ["shm", "inline", "shm"]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(fleet.worker(rank, 3, plane=plane)) for rank, plane in enumerate(planes)]
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(mixed, clients, timeout=60)) == inline


def open_segments() -> int:
    """How many file descriptors of this process belong to segments; a mapping has one too."""
    links = (os.path.realpath(link) for link in pathlib.Path("/proc/self/fd").iterdir())
    return sum("/psum-" in link for link in links)


def _break_connections(fleet: Any) -> None:
    for connection in fleet.servers[0]._service.connections:
        assert connection.data_connection is not None
        connection.data_connection.close()


@pytest.mark.parametrize(
    "end", ["in order", "by a disagreement", "by a worker that left early", "after a broken connection"]
)
def test_jobs_that_end_leave_no_memory_mapped(make_fleet: Callable[..., Any], end: str) -> None:
    """Neither in the aggregator nor in the clients, however the job ended, and without the garbage collector."""
    fleet = make_fleet(1, worker_timeout=2 if end == "after a broken connection" else 0.2)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            clients = [fleet.worker(rank, 2) for rank in range(2)]
            futures = [client.store().push_pull_async("w", np.ones(200_000, np.float32)) for client in clients]
            match end:
                case "by a disagreement":
                    futures += [
                        client.store().push_pull_async("v", np.ones(200_000 + client.rank, np.float32))
                        for client in clients
                    ]
                case "by a worker that left early":
                    futures.append(clients[0].store().push_pull_async("v", np.ones(200_000, np.float32)))
                    clients[1].close()
                case "after a broken connection":
                    for future in futures:
                        future.result(20)
                    fleet.thread.call(lambda: _break_connections(fleet))
                    wait_until(lambda: all(client.statistics().reconnects for client in clients))  # noqa: B023
                    futures = [client.store().push_pull_async("v", np.ones(200_000, np.float32)) for client in clients]
            for future in futures:
                future.exception(20)
            for client in clients:
                client.close()
        wait_until(lambda: not open_segments())
    finally:
        gc.enable()


def test_an_interrupted_connect_leaves_no_memory(make_fleet: Callable[..., Any]) -> None:
    """Ctrl-C comes while one aggregator has accepted the worker and the other one does not answer hello."""
    fleet = make_fleet(1)

    def interrupt() -> None:
        wait_until(lambda: fleet.servers[0]._service.connections)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    waiting = threading.Thread(target=interrupt)
    with silent_server() as silent:
        with interrupts_raise():
            waiting.start()
            with pytest.raises(KeyboardInterrupt):
                fleet.worker(0, 1, aggregators=(*fleet.addresses, silent))
        waiting.join()
    wait_until(lambda: gc.collect() >= 0 and not open_segments())


def test_large_payloads_do_not_travel_in_messages(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages stay small with tensors of any size."""
    fleet = make_fleet(1)
    with fleet.worker(0, 1) as client:
        assert client.planes == ("shm",)
        sent = message_bytes(client, monkeypatch)
        client.store().push_pull("w", np.ones(4 << 20, np.float32))
        assert sum(sent) < 10_000


@pytest.mark.parametrize("side", ["psum.client", "psum.aggregator"])
def test_where_the_directory_is_full_everything_travels_in_messages(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, side: str
) -> None:
    """Each side logs it once, and the sums are right."""
    reserve = os.posix_fallocate

    def full(descriptor: int, offset: int, size: int) -> None:
        # A worker reserves its whole segment, an aggregator one place after another.
        if (size > 4 << 20) is (side == "psum.client"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(descriptor, offset, size)

    fleet = make_fleet(1)
    inline = fleet.on_every_rank(1, sums, plane="inline", job="inline")
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert fleet.on_every_rank(1, sums) == inline
    [text] = [record.getMessage() for record in caplog.records if record.name.startswith(side)]
    assert "No space left on device" in text
    assert "in messages" in text


@pytest.mark.parametrize("side", ["worker", "aggregator"])
def test_without_a_common_directory_there_is_no_shared_memory(
    make_fleet: Callable[..., Any], tmp_path: pathlib.Path, side: str
) -> None:
    """As between hosts, or if one side has no shared memory."""
    if side == "worker":
        fleet = make_fleet(1, shm_directory="/nowhere")
        given = {"shm_directory": str(tmp_path)}
    else:
        fleet = make_fleet(1)
        given = {"shm_directory": "/nowhere"}
    with fleet.worker(0, 1, plane="shm", **given) as client:
        assert client.planes == ("inline",)
        sums(client)


@pytest.mark.parametrize("victim", ["worker", "aggregator"])
def test_nothing_is_left_after_kill_9(tmp_path: pathlib.Path, directory: pathlib.Path, victim: str) -> None:
    """A worker's segment has no name. Its memory for arrays, and an aggregator's, go with the next process there."""
    announce = tmp_path / "address"
    command = [sys.executable, "-m", "psum.cli", "aggregator", "--listen", "127.0.0.1:0", "--announce", str(announce)]
    command += ["--shm-directory", str(directory)]
    worker = (
        "import numpy as np, psum.client as psum\n"
        "with psum.connect() as client:\n"
        "    client.store().push_pull('w', np.ones(1 << 20, np.float32)); print(client.planes[0], flush=True)\n"
        "    import time; time.sleep(60)"
    )

    with running(command, stderr=subprocess.DEVNULL) as aggregator:
        wait_until(announce.exists)
        environ = {
            **os.environ,
            "PSUM_AGGREGATORS": announce.read_text().strip(),
            "PSUM_SHM_DIRECTORY": str(directory),
        }
        with running(
            [sys.executable, "-c", worker], env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "shm"
            # The aggregator's sums, and the worker's memory for arrays, which is empty.
            assert len(list(directory.iterdir())) == 2
            for one in (process, aggregator) if victim == "worker" else (aggregator, process):
                one.send_signal(signal.SIGKILL)
                one.wait(10)
    announce.unlink()
    with running(command, stderr=subprocess.DEVNULL) as aggregator:
        wait_until(announce.exists)
        assert list(directory.iterdir()) == []
        aggregator.send_signal(signal.SIGTERM)
        assert aggregator.wait(10) == 0
