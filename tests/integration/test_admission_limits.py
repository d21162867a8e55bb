"""How many streams, jobs and shards there may be, and what strangers may send."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.client.transport.credentials import Credentials
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PROTOCOL_VERSION, decode, encode
from tests.integration.credential_files import GENERAL, Files, total


def test_a_host_has_a_limited_number_of_streams(make_fleet: Callable[..., Any]) -> None:
    """One more is refused with an error, and accepted after another has ended."""
    fleet = make_fleet(max_streams=2)
    with fleet.worker(0, 3) as _, fleet.worker(1, 3), pytest.raises(psum.ConnectError, match="PSUM_MAX_STREAMS"):
        fleet.worker(2, 3, connect_timeout=2.0)
    assert fleet.on_every_rank(2, total, job="next") == [2.0, 2.0]


def test_an_aggregator_has_a_limited_number_of_jobs(make_fleet: Callable[..., Any]) -> None:
    """One more is refused with an error. Running jobs are not affected."""
    fleet = make_fleet(max_jobs=1)
    with fleet.worker(0, 1, job="first") as client:
        with pytest.raises(psum.ExhaustedError, match=r"job 'second' was refused: 1 jobs .* \(PSUM_MAX_JOBS\)"):
            fleet.worker(0, 1, job="second")
        assert total(client) == 1.0
    assert fleet.on_every_rank(1, total, job="second") == [1.0]


def push_new_keys(client: psum.Client, steps: int) -> None:
    store = client.store()
    for step in range(steps):
        store.push_pull(f"loss of step {step}", np.ones(400, np.float32))


def test_a_job_has_a_limited_number_of_shards(make_fleet: Callable[..., Any]) -> None:
    """A program that makes new keys in every step gets an error before it fills the aggregator's memory."""
    fleet = make_fleet(max_shards=20)
    with (
        fleet.worker(0, 1, partition_bytes=1 << 10) as client,
        pytest.raises(psum.ExhaustedError, match="PSUM_MAX_SHARDS"),
    ):
        push_new_keys(client, 30)


@contextlib.contextmanager
def stream(address: str) -> Iterator[Any]:
    """Open a stream of bytes as any gRPC client could, and return functions to write and read."""
    channel = Credentials.of(psum.Settings()).channel(address, ())
    with channel:
        requests: list[bytes] = []
        filled = threading.Condition()

        def sent() -> Iterator[bytes]:
            while True:
                with filled:
                    if not filled.wait_for(lambda: bool(requests), 10):
                        return
                    yield requests.pop(0)

        method: Any = channel.stream_stream("/psum.v1.AggregatorService/Exchange")
        call = method(sent(), timeout=20)

        def write(message: bytes) -> None:
            with filled:
                requests.append(message)
                filled.notify()

        yield call, write
        call.cancel()
        write(b"")


def test_a_stranger_who_sends_nothing_is_shown_the_door(make_fleet: Callable[..., Any]) -> None:
    """After the hello timeout, the stream ends with an error."""
    fleet = make_fleet(hello_timeout=0.2)
    with stream(fleet.addresses[0]) as (call, _):
        message, _ = decode(pb.ExchangeResponse, next(call))
    assert "no hello within 0.2 s" in message.fault.text


def test_a_stranger_without_a_token_is_refused_before_anything_is_read(
    make_fleet: Callable[..., Any], files: Files
) -> None:
    """The error comes without any message from the client."""
    fleet = make_fleet(token_file=files.write("tokens", GENERAL))
    with stream(fleet.addresses[0]) as (call, _):
        message, _ = decode(pb.ExchangeResponse, next(call))
    assert message.fault.code == pb.FAULT_CODE_DENIED


def test_a_hello_of_megabytes_is_refused(fleet: Any) -> None:
    """The aggregator keeps nothing of it."""
    with stream(fleet.addresses[0]) as (call, write):
        hello = pb.Hello(protocol_version=PROTOCOL_VERSION, job="j", num_workers=1, worker="x" * (2 << 20))
        write(encode(pb.ExchangeRequest(hello=hello)))
        message, _ = decode(pb.ExchangeResponse, next(call))
    assert "a hello has at most" in message.fault.text
