"""Workers learn of which processes an aggregator consists, before they join."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.aggregator.processes.ports import Ports
from psum.client import fleet
from psum.client.core.process_lists import Processes
from psum.client.route import Route
from tests.integration.several import PATIENCE_SECONDS, Aggregator
from tests.polling import wait_until


@pytest.fixture
def aggregator() -> Iterator[Aggregator]:
    """An aggregator of two processes."""
    with Ports() as ports, contextlib.closing(Aggregator(ports)) as made:
        yield made


def ask_nobody(settings: psum.Settings, route: Route) -> tuple[Sequence[Processes], frozenset[int]]:
    """What a worker that does not ask knows."""
    return [()] * len(settings.aggregators), frozenset()


def work(rank: int, address: str) -> Sequence[str]:
    """Sum keys of several sizes as one of two ranks, and return the addresses that were used."""
    settings = psum.Settings(aggregators=(address,), rank=rank, num_workers=2, connect_timeout=PATIENCE_SECONDS)
    with psum.connect(settings) as client:
        store = client.store()
        for number in range(8):
            value = np.full(10**number % 30_011 + 1, rank + 1, np.float32)
            store.push_pull(number, value)
            assert (value == 3).all()
        return client.settings.aggregators


def on_both_ranks(address: str) -> list[Any]:
    """Work on both ranks at the same time, and return the results or the errors."""
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work, rank, address) for rank in range(2)]
        return [future.exception(PATIENCE_SECONDS) or future.result() for future in futures]


def test_all_ranks_use_all_processes(aggregator: Aggregator) -> None:
    """They list one address. Both processes have contributions from both of them."""
    assert on_both_ranks(aggregator.address) == [tuple(s.addresses[0] for s in aggregator.servers)] * 2
    assert all(server._service.registry.counters.totals()[0] > 0 for server in aggregator.servers)


def test_workers_that_do_not_ask_use_the_first_process(aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As workers of an older version do."""
    monkeypatch.setattr(fleet, "_ask", ask_nobody)
    assert on_both_ranks(aggregator.address) == [(aggregator.address,)] * 2
    assert aggregator.servers[1]._service.registry.counters.totals()[0] == 0


def test_an_old_and_a_new_worker_in_one_job_are_told(aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The later one gets an error that shows both lists."""
    new = psum.Settings(aggregators=(aggregator.address,), rank=0, num_workers=2)
    with psum.connect(new) as client:
        monkeypatch.setattr(fleet, "_ask", ask_nobody)
        old = psum.Settings(aggregators=(aggregator.address,), rank=1, num_workers=2)
        with pytest.raises(psum.DisagreementError) as raised:
            psum.connect(old)
        assert all(address in str(raised.value) for address in client.settings.aggregators)


def test_a_worker_waits_while_the_first_process_ends(aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process may have another list."""
    service = aggregator.servers[0]._service
    asked = threading.Event()
    get = service._status.get

    async def watched(*arguments: Any) -> Any:
        asked.set()
        return await get(*arguments)

    monkeypatch.setattr(service._status, "get", watched)
    service._draining.begun = True
    settings = psum.Settings(aggregators=(aggregator.address,), num_workers=1, connect_timeout=PATIENCE_SECONDS)
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(psum.connect, settings)
        assert asked.wait(PATIENCE_SECONDS)
        assert not joining.done()
        service._draining.begun = False
        with joining.result(PATIENCE_SECONDS) as client:
            assert len(client.settings.aggregators) == 2


def test_a_proxy_with_another_port_is_told(aggregator: Aggregator) -> None:
    """The other process cannot be reached through it."""
    host, _, port = aggregator.address.rpartition(":")
    with socket.create_server((host, 0)) as listener:
        proxy = f"{host}:{listener.getsockname()[1]}"

        def forward() -> None:
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                here, _ = listener.accept()
                there = socket.create_connection((host, int(port)))
                for one, other in ((here, there), (there, here)):
                    stack.enter_context(one)
                    threading.Thread(target=_pump, args=(one, other)).start()
                done.wait(PATIENCE_SECONDS)

        done = threading.Event()
        forwarding = threading.Thread(target=forward)
        forwarding.start()
        with pytest.raises(psum.ConfigurationError, match=f"aggregator {proxy} has 2 processes .*--processes 1"):
            psum.connect(psum.Settings(aggregators=(proxy,), num_workers=1))
        done.set()
        forwarding.join()
    wait_until(lambda: not any(thread.name.endswith("(_pump)") for thread in threading.enumerate()))


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)
