"""The port for data connections. Each worker is invited over its stream."""

import asyncio
import errno
import hmac
import logging
import secrets
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from psum.aggregator.access.refusals import Refusals
from psum.aggregator.service.connection import WorkerConnection
from psum.planes import SECRET_BYTES, DataConnection
from psum.runtime import cannot_listen
from psum.wire import join_address
from psum.wire.errors import ConfigurationError

_log = logging.getLogger(__name__)

#: How many connections may wait to be accepted.
_BACKLOG: Final = 1024

#: How long to wait before accepting again after an error.
_RETRY_SECONDS: Final = 1.0

#: How often to look for a port that is free on all addresses.
_ATTEMPTS: Final = 8

#: The most connections that have shown no secret yet.
_MAX_UNIDENTIFIED: Final = 256

#: The first bytes of a client that speaks TLS: a handshake record of version 3.
_TLS_HELLO: Final = b"\x16\x03"

#: How many received bytes of one worker may wait here to be taken.
_AHEAD_BYTES: Final = 16 << 20


class _Unidentified(NamedTuple):
    """A connection that has shown no secret yet."""

    host: str
    port: int
    patience: asyncio.TimerHandle


class DataPort:
    """Listens for data connections. A connection must first show the secret of an invitation, which is good once.

    Args:
        hosts: The addresses to listen on.
        port: The port, 0 for a free one.
        context: Makes the TLS context of a connection, as the streams have it; None without TLS.
        patience: Seconds within which a connection must show its secret.
        keepalive: Seconds of silence after which a worker is probed.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        port: int,
        *,
        context: Callable[[], ssl.SSLContext] | None = None,
        patience: float,
        keepalive: float,
    ) -> None:
        self.port = port
        """The port, known after `start`."""
        self.refused = Refusals(_log)
        """Counts connections that were refused."""
        self._hosts = tuple(hosts)
        self._context = context
        self._patience = patience
        self._keepalive = keepalive
        self._invited: dict[bytes, WorkerConnection] = {}
        self._listeners: list[socket.socket] = []
        self._accepted: set[socket.socket] = set()
        """Connections that no transport owns yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        """Tasks that shake hands."""
        self._unidentified: dict[DataConnection, _Unidentified] = {}

    async def start(self) -> None:
        """Starts listening.

        Raises:
            ConfigurationError: It cannot listen on an address.
        """
        given = self.port
        for attempt in range(_ATTEMPTS):
            try:
                for host in self._hosts:
                    await self._listen(host)
                break
            except OSError as error:
                address = join_address(host, self.port)
                await self.close()
                if given or error.errno != errno.EADDRINUSE or attempt == _ATTEMPTS - 1:
                    raise ConfigurationError([cannot_listen("data_port", "data connections", address, error)]) from None
                # The port was free on one address and taken on another.
                self.port = given
        for listener in self._listeners:
            self._await_connections(listener)

    async def close(self) -> None:
        """Stops listening, and ends the connections that have shown no secret."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Those whose task had not begun.
        for connection in self._accepted:
            connection.close()
        self._accepted.clear()
        for data_connection, peer in self._unidentified.items():
            peer.patience.cancel()
            data_connection.close()
        self._unidentified.clear()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def _listen(self, host: str) -> None:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in found:
            try:
                listener = socket.socket(family, kind, protocol)
            except OSError as error:
                # The kernel has no IPv6, though the name has an IPv6 address.
                if error.errno != errno.EAFNOSUPPORT or len(found) == 1:
                    raise
                continue
            self._listeners.append(listener)
            _bind(listener, (address[0], self.port, *address[2:]))
            self.port = listener.getsockname()[1]

    def invite(self, connection: WorkerConnection) -> bytes:
        """Makes a secret by which a worker's data connection is recognized."""
        secret = secrets.token_bytes(SECRET_BYTES)
        self._invited[secret] = connection
        return secret

    def uninvite(self, connection: WorkerConnection) -> None:
        """Forgets the invitation of a worker whose stream has ended."""
        self._invited = {secret: other for secret, other in self._invited.items() if other is not connection}

    def _await_connections(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accepts the connections that wait. A task that did so, cancelled when it has one, would lose it."""
        loop = asyncio.get_running_loop()
        for _ in range(_BACKLOG):
            try:
                connection, (host, port, *_) = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.error("data connections cannot be accepted, tried again each second: %s", error)
                loop.remove_reader(listener)
                loop.call_later(_RETRY_SECONDS, self._await_connections, listener)
                return
            connection.setblocking(False)
            self._accepted.add(connection)
            task = loop.create_task(self._greet(connection, host, port))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _greet(self, connection: socket.socket, host: str, port: int) -> None:
        """Shakes hands if connections are encrypted. Then the other side must show a secret."""
        data_connection = self._make(host, port)
        context = None if self._context is None else self._context()
        self._accepted.discard(connection)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: data_connection,
                connection,
                ssl=context,
                ssl_handshake_timeout=None if context is None else self._patience,
            )
        except OSError as error:
            # If it was turned away meanwhile, that was counted already.
            if (peer := self._unidentified.pop(data_connection, None)) is not None:
                peer.patience.cancel()
                self._note("handshake", peer, f"refused in its TLS handshake: {_reason(error)}")

    def _make(self, host: str, port: int) -> DataConnection:
        data_connection = DataConnection(
            _AHEAD_BYTES, lambda secret: self._admit(data_connection, secret), keepalive=self._keepalive
        )
        patience = asyncio.get_running_loop().call_later(self._patience, self._turn_away, data_connection)
        self._unidentified[data_connection] = _Unidentified(host, port, patience)
        if len(self._unidentified) > _MAX_UNIDENTIFIED:
            # The oldest one.
            self._turn_away(next(iter(self._unidentified)))
        return data_connection

    def _admit(self, data_connection: DataConnection, shown: bytes) -> bool:
        peer = self._unidentified.pop(data_connection, None)
        if peer is None:
            return False
        peer.patience.cancel()
        found = [secret for secret in self._invited if hmac.compare_digest(secret, shown)]
        if not found:
            encrypted = self._context is None and shown.startswith(_TLS_HELLO)
            self._note(
                "secret",
                peer,
                "refused: it speaks TLS, this port does not" if encrypted else "refused: its secret was not given out",
            )
            return False
        self._invited.pop(found[0]).offer(data_connection)
        return True

    def _turn_away(self, data_connection: DataConnection) -> None:
        peer = self._unidentified.pop(data_connection)
        peer.patience.cancel()
        self._note("silence", peer, "closed: it did not show a secret in time")
        data_connection.close()

    def _note(self, kind: str, peer: _Unidentified, what: str) -> None:
        text = "a data connection from %s port %d was %s"
        self.refused.note(kind, peer.host, text, peer.host, peer.port, what)


def _bind(listener: socket.socket, address: tuple[str | int, ...]) -> None:
    listener.setblocking(False)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:
        # Otherwise it could not listen on the same port as IPv4.
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(address)
    listener.listen(_BACKLOG)


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error) or type(error).__name__
