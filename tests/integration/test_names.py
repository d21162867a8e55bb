"""Names and addresses: each address leads to one aggregator, and a name may have several addresses."""

import asyncio
import contextlib
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.client.transport import split_addresses
from psum.client.transport.loop_thread import LoopThread
from psum.wire import split_address
from tests.polling import wait_until

PATIENCE_SECONDS = 20.0


class Balancer:
    """Gives connections to its targets in turn, as a Service does.

    Attributes:
        address: Where to connect to.
        connections: How many connections were made.
    """

    def __init__(self, *targets: str) -> None:
        self.connections = 0
        self._targets = targets
        self._thread = LoopThread("balancer")
        self._server = self._thread.run(self._start(), 10)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())

    def close(self) -> None:
        self._thread.call(self._server.close)
        self._thread.stop()

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = self._targets[self.connections % len(self._targets)]
        self.connections += 1
        there_reader, there_writer = await asyncio.open_connection(*split_address(target))
        await asyncio.wait(
            [
                asyncio.create_task(_forward(reader, there_writer)),
                asyncio.create_task(_forward(there_reader, writer)),
            ],
            return_when=asyncio.FIRST_COMPLETED,
        )
        writer.transport.abort()
        there_writer.transport.abort()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


@pytest.fixture
def balance() -> Iterator[Callable[..., Balancer]]:
    """Makes balancers."""
    with contextlib.ExitStack() as stack:

        def make(*targets: str) -> Balancer:
            made = Balancer(*targets)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers check soon which aggregator an address leads to."""
    monkeypatch.setattr(split_addresses, "_FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(split_addresses, "_CERTAIN_SECONDS", 0.2)


def sum_of_ones(client: psum.Client) -> float:
    """Makes one push-pull; returns the sum."""
    value = np.ones(5, np.float32)
    client.store().push_pull("w", value)
    return float(value[0])


@pytest.mark.usefixtures("impatient")
def test_two_aggregators_behind_one_address_are_told_to_all_ranks(
    make_fleet: Callable[..., Any], balance: Callable[..., Balancer]
) -> None:
    """All ranks get an error, long before the timeout, if a Service has two replicas and each rank waits at another
    one."""
    fleet = make_fleet(2)
    first, second = fleet.addresses
    # Each rank connects twice, first to learn of the aggregator's processes: rank 0 joins the second, rank 1 the first.
    between = balance(first, second, second)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = []
        for rank in range(2):
            clients.append(fleet.worker(rank, 2, aggregators=(between.address,), plane="inline"))
            stack.callback(clients[-1].close, 0.5)
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(sum_of_ones, client) for client in clients]
            errors = [future.exception(PATIENCE_SECONDS) for future in futures]
        assert time.monotonic() - began < PATIENCE_SECONDS / 2
    for rank, error in enumerate(errors):
        assert isinstance(error, psum.DisagreementError)
        assert error.ranks == (0, 1)
        assert str(error).startswith(
            f"address {between.address} leads to more than one aggregator: rank {rank} of job 'default' came to one,"
            f" rank {1 - rank} to another"
        )


@pytest.mark.usefixtures("impatient")
def test_one_aggregator_behind_a_balancer_is_fine(
    make_fleet: Callable[..., Any], balance: Callable[..., Balancer]
) -> None:
    """A balancer in front of one aggregator is no error, even if a rank comes late and the others have checked
    before."""
    fleet = make_fleet(1)
    between = balance(*fleet.addresses)
    with (
        ThreadPoolExecutor(2) as pool,
        fleet.worker(0, 2, aggregators=(between.address,), plane="inline") as early,
    ):
        first = pool.submit(sum_of_ones, early)
        wait_until(lambda: between.connections > 6)
        with fleet.worker(1, 2, aggregators=(between.address,), plane="inline") as late:
            assert sum_of_ones(late) == first.result(PATIENCE_SECONDS) == 2


def test_one_aggregator_under_two_names_is_told(make_fleet: Callable[..., Any]) -> None:
    """The error names both addresses and says that they lead to one aggregator."""
    fleet = make_fleet(1)
    one = fleet.addresses[0]
    other = f"localhost:{split_address(one)[1]}"
    with pytest.raises(psum.DisagreementError, match=r"lead to one and the same aggregator: rank 0 .* came by both"):
        fleet.worker(0, 1, aggregators=(one, other))


def test_names_are_looked_up_as_the_system_does() -> None:
    """gRPC uses the system's resolver, unless the user sets another one."""
    program = "import os, psum.client; print(os.environ['GRPC_DNS_RESOLVER'])"

    def told(**given: str) -> str:
        environ = {name: value for name, value in os.environ.items() if name != "GRPC_DNS_RESOLVER"} | given
        return subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    assert told() == "native"
    assert told(GRPC_DNS_RESOLVER="ares") == "ares"


@pytest.mark.parametrize(
    "hosts",
    ["192.0.2.7 m\n127.0.0.1 m\n", "127.0.0.1 m\n127.0.0.7 m\n", "::1 m\n127.0.0.1 m\n"],
    ids=["the second listens", "the first listens", "IPv6 first"],
)
def test_a_name_with_several_addresses_of_which_one_listens(
    make_fleet: Callable[..., Any], tmp_path: pathlib.Path, hosts: str
) -> None:
    """The stream finds the address that listens, and the data connection uses the same. The test needs a private
    /etc/hosts."""
    (tmp_path / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
    in_own_world = ["unshare", "-m", "sh", "-c", 'mount --bind "$1" /etc/hosts && shift && exec "$@"', "sh"]
    in_own_world.append(str(tmp_path / "hosts"))
    try:
        subprocess.run([*in_own_world, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs to mount a file over /etc/hosts")
    fleet = make_fleet(1)
    program = (
        "import sys, numpy as np, psum.client\n"
        "settings = psum.client.Settings(aggregators=(sys.argv[1],), plane='direct', connect_timeout=10)\n"
        "with psum.client.connect(settings) as client:\n"
        "    client.store().push_pull('w', np.ones(100_000, np.float32))\n"
        "    print(client.planes)\n"
    )
    address = f"m:{split_address(fleet.addresses[0])[1]}"
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_DNS_RESOLVER"}
    done = subprocess.run(
        [*in_own_world, sys.executable, "-c", program, address],
        env=environ,
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert (done.stdout.strip(), done.stderr) == ("('direct',)", "")
