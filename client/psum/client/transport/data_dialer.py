"""The data connection to an aggregator: opening it, and whether that is worth trying.

That somebody accepts a connection says little: a sidecar, a port-forward or a balancer does so for a port that leads
nowhere, or to another aggregator. So a data connection counts only once the aggregator has answered on it. Whatever
else comes of it, everything goes on the stream.
"""

import asyncio
import contextlib
import ipaddress
import math
import socket
import ssl
from typing import Final

from psum.client.transport.credentials import Credentials
from psum.planes import DataConnection
from psum.runtime import lack_of_descriptors
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode, split_address
from psum.wire.errors import ConfigurationError, ProtocolError

#: How long it may take to open, whatever the number of the host's addresses. After a restart an aggregator has the
#: handshakes of all its workers to do.
_PATIENCE_SECONDS = 5.0

_LAST_PORT: Final = 65535

#: What may wait here to be taken from it.
_AHEAD_BYTES: Final = 16 << 20

#: A data connection that ends sooner than this has not worked well.
_STEADY_SECONDS: Final = 10.0

#: So many of those in a row, and it is left aside.
_SHORT_LIVES: Final = 3

#: For how long it is left aside at first; each time for twice as long.
_FIRST_PAUSE_SECONDS: Final = 60.0
_LAST_PAUSE_SECONDS: Final = 3600.0

#: The worker's first message on it, which says nothing: from then on the aggregator talks there too.
_HERE: Final = encode(pb.ExchangeRequest(declare=pb.Declare()))


class DataConnectionError(Exception):
    """It cannot be opened; the text says why."""


class DialProspects:
    """Whether a data connection to one aggregator process is worth trying.

    Each attempt that fails may take as long as a person notices, and each connection that breaks takes its stream with
    it. So what does not work is left aside for a while, which doubles each time, and is tried again only with a new
    stream. All times are of one monotonic clock, in seconds.
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
        """It could not be opened."""
        self._pause = min(max(_FIRST_PAUSE_SECONDS, 2 * self._pause), _LAST_PAUSE_SECONDS)
        self._not_before = now + self._pause
        self._short_lives = 0

    def opened(self, now: float) -> None:
        """It was opened."""
        self._opened = now

    def broke(self, now: float, *, useful: bool) -> bool:
        """It broke, though nobody wanted that.

        Args:
            now: The time.
            useful: Whether a sum had come on it.

        Returns:
            Whether it is left aside from now on.
        """
        if useful and now - self._opened >= _STEADY_SECONDS:
            self._short_lives, self._pause = 0, 0.0
            return False
        self._short_lives += 1
        if self._short_lives < _SHORT_LIVES:
            return False
        self.failed(now)
        return True


async def open_data_connection(
    address: str, welcome: pb.Welcome, credentials: Credentials, keepalive: float
) -> DataConnection:
    """A data connection on which the aggregator has answered.

    Where the host has several addresses, they are tried one after the other: only the aggregator that has given out the
    secret answers, hence the connection leads where the stream does.

    Args:
        address: The aggregator's address, no unix socket.
        welcome: What it said on the stream.
        credentials: How it is encrypted.
        keepalive: Seconds of silence after which the aggregator is probed.

    Raises:
        DataConnectionError: There is none within 5 s, or a file for TLS cannot be used.
    """
    if welcome.data_port > _LAST_PORT:
        raise DataConnectionError("ports go up to 65535")
    host, _ = split_address(address)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE_SECONDS
    try:
        context = credentials.data_context() if credentials.encrypts(address) else None
        async with asyncio.timeout_at(deadline):
            places = await addresses_of(host, welcome.data_port)
    except (OSError, TimeoutError, ConfigurationError) as error:
        raise DataConnectionError(_words(error)) from None
    reasons: dict[str, str] = {}
    for number, place in enumerate(places):
        attempt = _Attempt(place, welcome, context, credentials.data_name(host), keepalive)
        try:
            # Each has its share of the time that is left.
            async with asyncio.timeout((deadline - loop.time()) / (len(places) - number)):
                return await attempt.make()
        except (OSError, TimeoutError, ProtocolError) as error:
            reasons[place] = attempt.why(error)
    if len(reasons) == 1:
        raise DataConnectionError(*reasons.values())
    raise DataConnectionError("; ".join(f"{place}: {reason}" for place, reason in reasons.items()))


async def addresses_of(host: str, port: int) -> list[str]:
    """The addresses of a host, in the order in which the system would use them.

    Raises:
        OSError: It has none.
    """
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return [host]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (UnicodeError, RuntimeError) as error:
        # No name can be like that; or the interpreter is ending, and starts no more threads.
        raise OSError(f"{host!r} cannot be looked up: {error}") from None
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


class _Attempt:
    """One attempt to open a data connection to one address of an aggregator's host."""

    def __init__(
        self, place: str, welcome: pb.Welcome, context: ssl.SSLContext | None, name: str | None, keepalive: float
    ) -> None:
        self._place = place
        self._welcome = welcome
        self._context = context
        self._name = name
        self._keepalive = keepalive
        self._accepted = False

    async def make(self) -> DataConnection:
        """Opens it, shows the secret, and waits for the answer."""
        pipe = DataConnection(_AHEAD_BYTES, keepalive=self._keepalive)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: pipe, self._place, self._welcome.data_port, ssl=self._context, server_hostname=self._name
            )
            self._accepted = True
            pipe.show(self._welcome.data_secret)
            if self._welcome.data_answers:
                answer, _ = decode(pb.ExchangeResponse, await pipe.receive())
                if answer.WhichOneof("kind") != "taken":
                    raise ProtocolError(f"it says {answer.WhichOneof('kind')}")
                await pipe.send(_HERE)
        except BaseException:
            pipe.close()
            raise
        return pipe

    def why(self, error: Exception) -> str:
        """What kept it from being opened."""
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
