"""Relays that ask aggregators for their processes, for workers that reach nobody but their relay."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.aggregator.processes.ports import Ports
from psum.client.membership import Membership
from psum.client.transport import process_lists, process_question
from psum.client.transport.credentials import Credentials
from psum.v1 import aggregator_pb2 as pb
from tests.integration.several import Aggregator


@pytest.fixture
def make() -> Iterator[Callable[..., Aggregator]]:
    """Starts aggregators of several processes."""
    with Ports() as ports, contextlib.ExitStack() as stack:

        def start(processes: int = 2, **settings: Any) -> Aggregator:
            return stack.enter_context(contextlib.closing(Aggregator(ports, processes, **settings)))

        yield start


def sums(client: psum.Client) -> tuple[tuple[str, ...], int]:
    """Sums keys of several sizes. Returns the fleet and the number of connections."""
    store = client.store()
    for number in range(8):
        value = np.full(10**number % 30_011 + 1, client.rank + 1, np.float32)
        store.push_pull(number, value)
        assert (value == client.num_workers * (client.num_workers + 1) / 2).all()
    return client.settings.aggregators, len(client.planes)


def test_hosts_with_and_without_relays_have_the_same_fleet(make_fleet: Any, make: Any) -> None:
    """One host asks by itself, one through its relay, one through two levels. With a relay there is one connection."""
    fleet, aggregator = make_fleet(3), make()
    near, rack, owner = fleet.addresses
    aggregators = (owner, aggregator.address)
    one = {"aggregators": aggregators}
    by = [f"{near}/1", f"{aggregator.addresses[1]}/1,{rack}/1"]
    settings: list[dict[str, Any]] = [one, *({**one, "relay": relay} for relay in by)]
    results = fleet.on_ranks(settings, sums)
    whole = (owner, *aggregator.addresses)
    assert results == [(whole, 3), (whole, 1), (whole, 1)]
    assert all(received > 0 for received in aggregator.received_bytes())


def test_an_aggregator_whose_processes_are_its_own_host_s_is_no_reason_for_a_relay(
    make_fleet: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay saves nothing if there is one aggregator, however many processes it has. With another one it is the first
    process, which is found by the list as it is."""
    aggregator, fleet = make(), make_fleet(1)
    monkeypatch.setattr("psum.client.route._own_address_here", lambda addresses: addresses[0])
    usual = {"local_size": 2, "aggregators": (aggregator.address,)}
    assert fleet.on_ranks([usual] * 3, sums) == [(aggregator.addresses, 2)] * 3
    both = (aggregator.address, fleet.addresses[0])
    settings = [usual | {"aggregators": both, "local_size": size} for size in (2, 2, 1)]
    whole = (*aggregator.addresses, fleet.addresses[0])
    assert fleet.on_ranks(settings, sums) == [(whole, 1), (whole, 1), (whole, 3)]


def test_an_aggregator_that_does_not_run_is_named(make_fleet: Any) -> None:
    """A worker with a relay waits for it as long as one without. The aggregator that runs is not asked again."""
    fleet, asked = make_fleet(1), []
    late = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{late.getsockname()[1]}"
    late.close()
    relay = fleet.addresses[0]
    question = process_question.ask

    async def watched(to: str, credentials: Credentials, request: pb.GetStatusRequest, patience: float) -> Any:
        assert to == relay
        asked.append(list(request.hello.aggregators))
        return await question(to, credentials, request, patience)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_lists, "ask", watched)
        settings = {"relay": f"{relay}/1", "aggregators": (relay, address), "connect_timeout": 0.6}
        text = rf"at aggregator {address} within 0.6 s \(PSUM_CONNECT_TIMEOUT\): relay {relay} asked it, but"
        with pytest.raises(psum.ConnectError, match=rf"{text} .*Connection refused") as raised:
            fleet.worker(0, 1, **settings)
    assert raised.value.address == address
    assert asked[0] == [relay, address]
    assert asked[1:] == [[address]] * (len(asked) - 1)
    assert len(asked) > 1


def test_a_relay_that_cannot_be_reached_is_named(make_fleet: Any) -> None:
    """Also the second of two levels, by the first one."""
    fleet = make_fleet(1)
    nobody = "127.0.0.1:1"
    for relay in (f"{nobody}/1", f"{fleet.addresses[0]}/1,{nobody}/1"):
        with pytest.raises(psum.ConnectError, match="Connection refused") as raised:
            fleet.worker(0, 1, relay=relay, connect_timeout=0.3)
        assert raised.value.address == nobody


def test_strangers_make_a_relay_connect_nowhere(make_fleet: Any, tmp_path: Any) -> None:
    """A question is checked as a hello is: a token of another job, none at all, and an aggregator that does not relay
    lead to the error of joining, before the relay asks anybody."""
    tokens, good, bad = (tmp_path / name for name in ("tokens", "good", "bad"))
    tokens.write_text("job-a alpha-0123456789abcdef\njob-b beta-0123456789abcdef\n")
    good.write_text("alpha-0123456789abcdef\n")
    bad.write_text("beta-0123456789abcdef\n")
    guarded, closed = make_fleet(1, token_file=str(tokens)), make_fleet(1, relaying=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        asked = f"127.0.0.1:{listener.getsockname()[1]}"
        usual = {"aggregators": (asked, "10.0.0.9:1"), "job": "job-a", "connect_timeout": 2.0}
        for fleet, token in ((guarded, ""), (guarded, str(bad)), (closed, "")):
            given = usual | {"relay": f"{fleet.addresses[0]}/1", "token_file": token}
            with pytest.raises(psum.DeniedError):
                fleet.worker(0, 1, **given)
        with pytest.raises(BlockingIOError):
            listener.accept()
        given = usual | {"relay": f"{guarded.addresses[0]}/1", "token_file": str(good), "aggregators": (asked,)}
        with pytest.raises(psum.ConnectError):
            guarded.worker(0, 1, **given)
        listener.accept()[0].close()


@pytest.mark.parametrize("relays", [False, True])
def test_all_processes_beside_workers_share_what_suits_their_host(
    make_fleet: Any, make: Any, monkeypatch: pytest.MonkeyPatch, relays: bool
) -> None:
    """Three hosts with two workers and an aggregator of two processes each, and a dedicated one of four: it takes two
    fifths of the bytes, as if each was one process. A worker need not know that all processes are on its host."""
    hosts, dedicated = [make() for _ in range(3)], make(4)

    async def own(membership: Membership) -> frozenset[int]:
        return frozenset([2 * (membership._settings.rank // 2)])

    monkeypatch.setattr("psum.client.fleet.is_local", lambda address: False)
    monkeypatch.setattr(Membership, "_own_aggregators", own)
    aggregators = tuple(aggregator.address for aggregator in (*hosts, dedicated))
    settings = [
        {
            "aggregators": aggregators,
            "local_size": 2,
            "local_rank": rank % 2,
            "relay": hosts[rank // 2].address if relays else "off",
        }
        for rank in range(6)
    ]

    def work(client: psum.Client) -> None:
        value = np.full(1 << 18, client.rank + 1, np.float32)
        client.store().push_pull("w", value)
        assert (value == 21).all()

    assert make_fleet(1).on_ranks(settings, work) == [None] * 6
    received = [bytes_ for aggregator in (*hosts, dedicated) for bytes_ in aggregator.received_bytes()]
    assert [round(each / sum(received), 2) for each in received] == [0.1] * 10
