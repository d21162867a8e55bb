"""An aggregator logs each event once, with names, and each refusal."""

import contextlib
import logging
import pathlib
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from psum import client as psum
from psum.v1 import aggregator_pb2 as pb
from psum.v1 import aggregator_pb2_grpc as rpc
from tests.integration.credential_files import Files
from tests.polling import wait_until


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """The lines of the aggregators so far, without the addresses of workers."""

    def lines() -> list[str]:
        told = [r.getMessage() for r in caplog.records if r.name.startswith("psum.aggregator")]
        return [re.sub(r"\S+ pid \d+( since \S+Z)?( \(ipv4:[0-9.]+:\d+\))?", "WORKER", text) for text in told]

    with caplog.at_level(logging.INFO, "psum.aggregator"):
        yield lines


def push(client: psum.Client) -> None:
    client.store().push_pull("w", np.ones(3, np.float32))


def test_a_job_s_life_has_a_line_for_each_event(make_fleet: Any, log: Callable[[], list[str]]) -> None:
    """Each event of a job has one line, and a worker that comes back is not logged as joining.

    The reason why a connection broke is not always known.
    """
    fleet = make_fleet()
    with fleet.worker(0, 1) as client:
        push(client)
        [connection] = fleet.servers[0]._service.connections
        fleet.thread.call(connection.data_connection.close)
        wait_until(lambda: any("came back" in line for line in log()))
    wait_until(lambda: log()[-1].endswith("ended"))
    cause = " (the data connection broke: it was closed)"
    assert [line.replace(cause, "") for line in log() if line.startswith("job")] == [
        "job default: rank 0 of 1 joined, WORKER",
        "job default: rank 0, WORKER, vanished; its place is kept for 30 s",
        "job default: rank 0 of 1 came back, WORKER",
        "job default: rank 0 left",
        "job default: ended",
    ]
    assert not any("peer" in line for line in log())


def test_a_drain_is_said_and_no_worker_is_said_to_have_vanished(
    make_fleet: Any, log: Callable[[], list[str]], directory: pathlib.Path
) -> None:
    """A drain is logged, and its workers are not logged as lost: they go on with the next process."""
    # In /dev/shm it might find, and report, what killed processes of other tests have left.
    fleet = make_fleet(shm_directory=str(directory))
    with fleet.worker(0, 2, reconnect_timeout=0.1) as zero, fleet.worker(1, 2, reconnect_timeout=0.1):
        future = zero.store().push_pull_async("w", np.ones(3, np.float32))
        wait_until(lambda: psum.fetch_status(fleet.addresses[0]).jobs[0].rounds_waiting)
        fleet.thread.run(fleet.servers[0].stop(0.3), 10)
        with pytest.raises(psum.AggregatorLostError):
            future.result(10)
    lines = [line for line in log() if "listening" not in line and "joined" not in line and "port" not in line]
    assert lines[:2] == [
        "draining for up to 0.3 s (PSUM_GRACE): 1 open rounds of 1 jobs are finished, all others wait for the next"
        " process",
        "drained for 0.3 s; 1 rounds are not finished, the next process makes them again",
    ]
    assert sorted(lines[2:]) == [
        f"job default: rank {rank}, WORKER, was disconnected, to go on with the next process here" for rank in range(2)
    ]


def test_why_a_job_failed_is_said_once(make_fleet: Any, log: Callable[[], list[str]]) -> None:
    """The reason why a job failed is logged once, although later refusals and the end of the job have it too."""
    fleet = make_fleet()
    with fleet.worker(0, 3), pytest.raises(psum.DisagreementError):
        fleet.worker(1, 4)
    wait_until(lambda: "ended" in log()[-1])
    lines = [line for line in log() if "default" in line][1:]
    assert lines[0].startswith("ranks of job 'default' disagree on the number of workers")
    assert lines[1:] == [
        "job default: refused rank 1, WORKER, for that reason",
        "job default: ended after its failure",
    ]


@pytest.mark.parametrize("wrong", ["no certificate", "no trust", "no TLS"])
def test_a_refused_handshake_leaves_a_trace(
    make_fleet: Any, files: Files, log: Callable[[], list[str]], wrong: str
) -> None:
    """A refused handshake is counted and has one line with the address, however often it is repeated. Accepted workers
    have none."""
    fleet = make_fleet(tls_client_ca=files.ca, **files.certificate("server", "127.0.0.1"))
    service = fleet.servers[0]._service
    certificate = files.certificate("worker", "worker")
    mine: dict[str, Any] = {"tls_ca": files.ca, **certificate}
    assert fleet.on_every_rank(2, push, **mine) == [None, None]
    psum.fetch_status(fleet.addresses[0], settings=psum.Settings(**mine))
    worker: dict[str, dict[str, Any]] = {
        "no certificate": {"tls_ca": files.ca},
        "no trust": {"tls_ca": files.other_ca, **certificate},
        "no TLS": {},
    }
    before = sum(service.refused_connections().values())
    assert before == 0
    for _ in range(3):
        with pytest.raises(psum.ConnectError):
            fleet.worker(0, 1, **worker[wrong])
    wait_until(lambda: service.refused_connections().get(("grpc", "handshake"), 0) >= 3)
    [line] = [line for line in log() if "TLS handshake" in line]
    assert re.match(r"a connection from 127\.0\.0\.1 port \d+ was ended in its TLS handshake", line)


def until_ended(stranger: socket.socket) -> None:
    """Waits until the other side closes a connection."""
    with contextlib.suppress(ConnectionResetError):
        while stranger.recv(4096):
            pass


def test_what_a_data_connection_is_refused_for_is_said(
    make_fleet: Any, files: Files, log: Callable[[], list[str]]
) -> None:
    """Each refused data connection is logged with its address and counted: missing TLS, unexpected TLS, a wrong
    secret."""
    encrypted, plain = make_fleet(**files.certificate("server", "127.0.0.1")), make_fleet()
    for fleet, sent in ((encrypted, bytes(32)), (plain, b"\x16\x03\x01" + bytes(29)), (plain, bytes(32))):
        port = fleet.servers[0]._data_port.port
        with socket.create_connection(("127.0.0.1", port), 10) as stranger:
            stranger.sendall(sent)
            until_ended(stranger)
    refused = [line for line in log() if line.startswith("a data connection from 127.0.0.1 port")]
    assert len(refused) == 2
    assert re.search(r"was refused in its TLS handshake: (wrong version number|\S.*)$", refused[0])
    assert refused[1].endswith("was refused: it speaks TLS, this port does not")
    assert encrypted.servers[0]._service.refused_connections() == {("data", "handshake"): 1}
    assert plain.servers[0]._service.refused_connections() == {("data", "secret"): 2}


def test_a_stop_says_nothing_of_connections_that_were_just_made(make_fleet: Any, log: Callable[[], list[str]]) -> None:
    """A stop does not log connections that had no time to show their secret."""
    fleet = make_fleet()
    with socket.create_connection(("127.0.0.1", fleet.servers[0]._data_port.port), 10):
        wait_until(lambda: fleet.servers[0]._data_port._unidentified)
        fleet.thread.run(fleet.servers[0].stop(0), 10)
    assert not any("a data connection from" in line for line in log())


def test_a_refused_worker_is_counted_once(make_fleet: Any, tmp_path: Any, log: Callable[[], list[str]]) -> None:
    """A refused worker is counted once. It learns the reason although it has sent nothing yet, so it does not try
    again."""
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    fleet = make_fleet(token_file=str(tmp_path / "tokens"))
    refusals = fleet.servers[0]._service.registry.counters.refusals
    with grpc.insecure_channel(fleet.addresses[0]) as channel:

        def late() -> Iterator[pb.ExchangeRequest]:
            wait_until(lambda: refusals["denied"])
            yield pb.ExchangeRequest(hello=pb.Hello(protocol_version=1, job="j", num_workers=1))

        call = rpc.AggregatorServiceStub(channel).Exchange(late(), timeout=20)
        assert next(call).fault.code == pb.FAULT_CODE_DENIED
        call.cancel()
    for _ in range(20):
        with pytest.raises(psum.DeniedError):
            fleet.worker(0, 1)
    assert refusals == {"denied": 21}
    assert [line for line in log() if "refused" in line][1:] == []


def test_streams_beyond_those_that_a_host_may_have_are_counted(make_fleet: Any, log: Callable[[], list[str]]) -> None:
    """Streams beyond a host's limit are counted, with one line however often they are tried."""
    fleet = make_fleet(max_streams=1)
    with fleet.worker(0, 2), pytest.raises(psum.ConnectError, match="PSUM_MAX_STREAMS"):
        fleet.worker(1, 2, connect_timeout=1.0)
    assert fleet.servers[0]._service.registry.counters.refusals["exhausted"] > 1
    assert len([line for line in log() if "refused another stream" in line]) == 1
