"""The port for data connections loses none: neither when it is closed, nor when one cannot be accepted."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from psum.aggregator.service import data_port
from psum.aggregator.service.data_port import DataPort
from tests.polling import PATIENCE_SECONDS

#: Within so many steps of the event loop, a connection is accepted, and waits for its secret.
STEPS = 10


@pytest.fixture
async def port() -> AsyncIterator[DataPort]:
    """A port on this host."""
    made = DataPort(["127.0.0.1"], 0, patience=PATIENCE_SECONDS, keepalive=10.0)
    await made.start()
    yield made
    await made.close()


@pytest.mark.parametrize("steps", range(STEPS + 1))
async def test_a_port_that_is_closed_ends_its_connections(port: DataPort, steps: int) -> None:
    """However far it is with them. A socket that nobody closes is reported as an error."""
    with socket.create_connection(("127.0.0.1", port.port), PATIENCE_SECONDS) as stranger:
        for _ in range(steps):
            await asyncio.sleep(0)
        if steps == STEPS:
            assert port._unidentified
        await port.close()
        # The kernel resets one that was not accepted yet.
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.to_thread(stranger.recv, 1) == b""


async def test_a_port_that_cannot_accept_a_connection_tries_again(
    port: DataPort, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when too many files are open. A connection that has ended before it is accepted is no reason to wait."""
    monkeypatch.setattr(data_port, "_RETRY_SECONDS", 0.01)
    accept, errors = socket.socket.accept, [errno.ECONNABORTED, errno.EMFILE]

    def failing(self: socket.socket) -> Any:
        if errors:
            raise OSError(number := errors.pop(0), os.strerror(number))
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", failing)
    with socket.create_connection(("127.0.0.1", port.port), PATIENCE_SECONDS):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not port._unidentified:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert [record.getMessage() for record in caplog.records] == [
        "data connections cannot be accepted, tried again each second: [Errno 24] Too many open files"
    ]
