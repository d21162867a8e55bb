"""Where workers on other hosts open data connections, each invited over its stream."""

import asyncio
import errno
import hmac
import logging
import secrets
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, NamedTuple

from psum.aggregator.access.refusals import Refusals
from psum.aggregator.service.connection import WorkerConnection
from psum.planes import SECRET_BYTES, DataConnection
from psum.runtime import cannot_listen
from psum.wire import join_address
from psum.wire.errors import ConfigurationError

_log = logging.getLogger(__name__)

#: How many connections wait to be accepted.
_BACKLOG: Final = 1024

#: After how long it is tried again to accept connections, where that is not possible.
_RETRY_SECONDS: Final = 1.0

#: How often a free port is looked for that is free on all addresses.
_ATTEMPTS: Final = 8

#: Connections that have shown no secret yet.
_MAX_STRANGERS: Final = 256

#: How a client begins that speaks TLS: a handshake record of version 3, whatever follows.
_TLS_HELLO: Final = b"\x16\x03"

#: What may wait here of one worker, messages and payloads.
_AHEAD_BYTES: Final = 16 << 20


class _Stranger(NamedTuple):
    """A connection that has shown no secret yet."""

    host: str
    port: int
    patience: asyncio.TimerHandle


class DataPort:
    """Listens for data connections. Whoever connects must first show the secret of an invitation, which is good once.

    Args:
        hosts: Where to listen.
        port: The port, 0 for a free one.
        context: How the next connection is encrypted, None where none is: as the streams are.
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
        """The port, once it listens."""
        self.refused = Refusals(_log)
        """Connections that did not become a worker's."""
        self._hosts = tuple(hosts)
        self._context = context
        self._patience = patience
        self._keepalive = keepalive
        self._invited: dict[bytes, WorkerConnection] = {}
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        """What accepts connections, and what makes them ready."""
        self._strangers: dict[DataConnection, _Stranger] = {}

    async def start(self) -> None:
        """Begins to listen.

        Raises:
            ConfigurationError: It cannot listen there.
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
                # What is free on one address was taken on another.
                self.port = given
        for listener in self._listeners:
            self._begin(self._accept(listener))

    async def close(self) -> None:
        """Listens no more, and ends the connections that have shown no secret."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pipe, stranger in self._strangers.items():
            stranger.patience.cancel()
            pipe.close()
        self._strangers.clear()
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
                # A kernel without IPv6, where a name has an address of IPv6 all the same.
                if error.errno != errno.EAFNOSUPPORT or len(found) == 1:
                    raise
                continue
            self._listeners.append(listener)
            _bind(listener, (address[0], self.port, *address[2:]))
            self.port = listener.getsockname()[1]

    def invite(self, line: WorkerConnection) -> bytes:
        """A secret by which a worker's data connection is known."""
        secret = secrets.token_bytes(SECRET_BYTES)
        self._invited[secret] = line
        return secret

    def uninvite(self, line: WorkerConnection) -> None:
        """The worker's stream has ended: it may open no data connection for it any more."""
        self._invited = {secret: other for secret, other in self._invited.items() if other is not line}

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:
                _log.error("data connections cannot be accepted, tried again each second: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._begin(self._greet(connection, address[0], address[1]))

    async def _greet(self, connection: socket.socket, host: str, port: int) -> None:
        """Shakes hands with whoever has connected, where connections are encrypted; then it must show a secret."""
        pipe = self._make(host, port)
        context = None if self._context is None else self._context()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: pipe,
                connection,
                ssl=context,
                ssl_handshake_timeout=None if context is None else self._patience,
            )
        except OSError as error:
            # Where it was turned away meanwhile, that is said already.
            if (stranger := self._strangers.pop(pipe, None)) is not None:
                stranger.patience.cancel()
                self._note("handshake", stranger, f"refused in its TLS handshake: {_reason(error)}")

    def _make(self, host: str, port: int) -> DataConnection:
        pipe = DataConnection(_AHEAD_BYTES, lambda secret: self._admit(pipe, secret), keepalive=self._keepalive)
        patience = asyncio.get_running_loop().call_later(self._patience, self._turn_away, pipe)
        self._strangers[pipe] = _Stranger(host, port, patience)
        if len(self._strangers) > _MAX_STRANGERS:
            # The one that has had the most time.
            self._turn_away(next(iter(self._strangers)))
        return pipe

    def _admit(self, pipe: DataConnection, shown: bytes) -> bool:
        stranger = self._strangers.pop(pipe, None)
        if stranger is None:
            return False
        stranger.patience.cancel()
        found = [secret for secret in self._invited if hmac.compare_digest(secret, shown)]
        if not found:
            encrypted = self._context is None and shown.startswith(_TLS_HELLO)
            self._note(
                "secret",
                stranger,
                "refused: it speaks TLS, this port does not"
                if encrypted
                else "refused: its secret is none of those given out",
            )
            return False
        self._invited.pop(found[0]).offer(pipe)
        return True

    def _turn_away(self, pipe: DataConnection) -> None:
        stranger = self._strangers.pop(pipe)
        stranger.patience.cancel()
        self._note("silence", stranger, "closed: it did not show a secret in time")
        pipe.close()

    def _note(self, kind: str, stranger: _Stranger, what: str) -> None:
        text = "a data connection from %s port %d was %s"
        self.refused.note(kind, stranger.host, text, stranger.host, stranger.port, what)


def _bind(listener: socket.socket, address: tuple[str | int, ...]) -> None:
    listener.setblocking(False)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:
        # Else it could not be bound beside the same port of IPv4.
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(address)
    listener.listen(_BACKLOG)


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error) or type(error).__name__
