"""The data connection to an aggregator: opening it, and whether that is worth trying.

An accepted connection proves little: a sidecar, a port-forward or a load balancer accepts connections for a port that
leads nowhere, or to another aggregator. So a data connection counts only after the aggregator has answered on it. If
there is none that works, everything travels on the stream.
"""

import asyncio
import contextlib
import ipaddress
import logging
import math
import socket
import ssl
import time
from typing import Final

from psum.client.transport.credentials import Credentials
from psum.planes import DataConnection
from psum.runtime import lack_of_descriptors
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode, split_address
from psum.wire.errors import ConfigurationError, ProtocolError

_log = logging.getLogger(__name__)

#: How long opening may take, for all addresses of the host together. After a restart, an aggregator shakes hands with
#: all its workers at once.
_PATIENCE_SECONDS = 5.0

_LAST_PORT: Final = 65535

#: How many received bytes may wait here to be taken.
_AHEAD_BYTES: Final = 16 << 20

#: A data connection that breaks sooner than this does not count as one that works.
_STEADY_SECONDS: Final = 10.0

#: After this many short lives in a row, it is not tried for a while.
_SHORT_LIVES: Final = 3

#: How long it is not tried at first, and at most; each pause is twice as long as the one before.
_FIRST_PAUSE_SECONDS: Final = 60.0
_LAST_PAUSE_SECONDS: Final = 3600.0

#: The worker's first message there, which says nothing. The aggregator talks there from then on.
_HERE: Final = encode(pb.ExchangeRequest(declare=pb.Declare()))


class DataConnectionError(Exception):
    """A data connection cannot be opened; the text says why."""


class DialProspects:
    """Decides whether a data connection to one aggregator process is worth trying.

    An attempt that fails may take several seconds, and a data connection that breaks ends its stream too. So one that
    does not work is not tried for a while, each time for twice as long, and then only with a new stream. All times are
    in seconds of one monotonic clock.
    """

    def __init__(self) -> None:
        self._not_before = -math.inf
        self._pause = 0.0
        self._short_lives = 0
        self._opened = 0.0

    def worth_trying(self, now: float) -> bool:
        """Whether to try it now."""
        return now >= self._not_before

    def failed(self, now: float) -> None:
        """Notes that it could not be opened."""
        self._pause = min(max(_FIRST_PAUSE_SECONDS, 2 * self._pause), _LAST_PAUSE_SECONDS)
        self._not_before = now + self._pause
        self._short_lives = 0

    def opened(self, now: float) -> None:
        """Notes that it was opened."""
        self._opened = now

    def broke(self, now: float, *, useful: bool) -> bool:
        """Notes that it broke.

        Args:
            now: The time.
            useful: Whether a sum had come on it.

        Returns:
            Whether it is not tried for a while from now on.
        """
        if useful and now - self._opened >= _STEADY_SECONDS:
            self._short_lives, self._pause = 0, 0.0
            return False
        self._short_lives += 1
        if self._short_lives < _SHORT_LIVES:
            return False
        self.failed(now)
        return True


class DataDialer:
    """Opens the data connections to one aggregator, one for each stream.

    Args:
        title: Who opens them, for the log, such as "rank 3".
        address: The aggregator's address.
        credentials: How connections are encrypted.
        keepalive: Seconds of silence after which the aggregator is probed.
    """

    def __init__(self, title: str, address: str, credentials: Credentials, keepalive: float) -> None:
        self._title = title
        self._address = address
        self._credentials = credentials
        self._keepalive = keepalive
        self._incarnation: int | None = None
        """The aggregator process that the prospects are of."""
        self._prospects = DialProspects()
        self._reported = ""
        """The last reason in the log."""

    async def open(self, welcome: pb.Welcome) -> DataConnection | None:
        """A data connection for a stream; None if there is none that works, so that everything travels on the stream.

        Args:
            welcome: What the aggregator answered on the stream.
        """
        if welcome.incarnation != self._incarnation:
            # Another process has another data port.
            self._incarnation, self._prospects = welcome.incarnation, DialProspects()
        if not welcome.data_port or self._address.startswith("unix:"):
            return None
        if not self._prospects.worth_trying(time.monotonic()):
            return None
        try:
            connection = await open_data_connection(self._address, welcome, self._credentials, self._keepalive)
        except DataConnectionError as error:
            self._prospects.failed(time.monotonic())
            self._warn(f"it cannot open a data connection to port {welcome.data_port} there ({error})")
            return None
        self._prospects.opened(time.monotonic())
        return connection

    def broke(self, reason: str, *, useful: bool) -> None:
        """Notes that a data connection broke, though this worker did not close it.

        Args:
            reason: Why it broke.
            useful: Whether a sum had come on it.
        """
        if self._prospects.broke(time.monotonic(), useful=useful):
            self._warn(f"the data connection there breaks each time soon after it was opened ({reason})")

    def _warn(self, reason: str) -> None:
        # Once for each reason: it is tried again now and then.
        if reason != self._reported:
            self._reported = reason
            _log.warning(
                "%s has only the stream to aggregator %s, which is slower: %s", self._title, self._address, reason
            )


async def open_data_connection(
    address: str, welcome: pb.Welcome, credentials: Credentials, keepalive: float
) -> DataConnection:
    """Opens a data connection on which the aggregator has answered.

    Tries the host's addresses one after another. Only the aggregator that gave out the secret answers, so the data
    connection leads to the same process as the stream.

    Args:
        address: The aggregator's address, not a unix socket.
        welcome: What the aggregator answered on the stream.
        credentials: How the connection is encrypted.
        keepalive: Seconds of silence after which the aggregator is probed.

    Raises:
        DataConnectionError: No address led to the aggregator within 5 s, or a file for TLS cannot be used.
    """
    if welcome.data_port > _LAST_PORT:
        raise DataConnectionError("ports go up to 65535")
    host, _ = split_address(address)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE_SECONDS
    try:
        context = credentials.data_context() if credentials.encrypts(address) else None
        async with asyncio.timeout_at(deadline):
            ip_addresses = await addresses_of(host, welcome.data_port)
    except (OSError, TimeoutError, ConfigurationError) as error:
        raise DataConnectionError(_words(error)) from None
    reasons: dict[str, str] = {}
    for number, ip_address in enumerate(ip_addresses):
        attempt = _Attempt(ip_address, welcome, context, credentials.data_name(host), keepalive)
        try:
            # Each address gets its share of the time that is left.
            async with asyncio.timeout((deadline - loop.time()) / (len(ip_addresses) - number)):
                return await attempt.make()
        except (OSError, TimeoutError, ProtocolError) as error:
            reasons[ip_address] = attempt.why(error)
    if len(reasons) == 1:
        raise DataConnectionError(*reasons.values())
    raise DataConnectionError("; ".join(f"{ip_address}: {reason}" for ip_address, reason in reasons.items()))


async def addresses_of(host: str, port: int) -> list[str]:
    """The addresses of a host, in the order in which the system would try them.

    Raises:
        OSError: The host has none.
    """
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return [host]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (UnicodeError, RuntimeError) as error:
        # The name is malformed; or the interpreter is ending, and starts no more threads.
        raise OSError(f"{host!r} cannot be looked up: {error}") from None
    return list(dict.fromkeys(str(socket_address[0]) for *_, socket_address in found))


class _Attempt:
    """One attempt to open a data connection to one address of an aggregator's host."""

    def __init__(
        self, ip_address: str, welcome: pb.Welcome, context: ssl.SSLContext | None, name: str | None, keepalive: float
    ) -> None:
        self._ip_address = ip_address
        self._welcome = welcome
        self._context = context
        self._name = name
        self._keepalive = keepalive
        self._accepted = False

    async def make(self) -> DataConnection:
        """Opens the connection, shows the secret, and waits for the answer.

        Raises:
            OSError: The connection was refused or broke.
            ProtocolError: Something else than the aggregator answers.
        """
        connection = DataConnection(_AHEAD_BYTES, keepalive=self._keepalive)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: connection,
                self._ip_address,
                self._welcome.data_port,
                ssl=self._context,
                server_hostname=self._name,
            )
            self._accepted = True
            connection.send_secret(self._welcome.data_secret)
            if self._welcome.data_answers:
                answer, _ = decode(pb.ExchangeResponse, await connection.receive())
                if answer.WhichOneof("kind") != "taken":
                    raise ProtocolError(f"it says {answer.WhichOneof('kind')}")
                await connection.send(_HERE)
        except BaseException:
            connection.close()
            raise
        return connection

    def why(self, error: Exception) -> str:
        """Why it could not be opened, for people."""
        if not self._accepted:
            return _words(error)
        if isinstance(error, TimeoutError):
            what = "it was accepted, but the aggregator does not answer there"
        elif isinstance(error, ProtocolError):
            what = f"it was accepted by something that is not this aggregator: {error}"
        else:
            what = "it was accepted, and closed before the aggregator answered"
        return f"{what}; does that port lead to this aggregator's data port?"


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_PATIENCE_SECONDS:g} s"
    return lack_of_descriptors(error) or str(error)
