"""Channels with TLS and calls with a token, by which a client and an aggregator know each other."""

import dataclasses
import ssl
from collections.abc import Callable, Iterable
from typing import Self

import grpc
import grpc.aio

from psum.client.settings import Settings
from psum.runtime import TlsFiles, read_file
from psum.wire.errors import ConfigurationError

_Options = Iterable[tuple[str, int | str]]


@dataclasses.dataclass(frozen=True, slots=True)
class SettingNames:
    """The variables that name the files for TLS, for errors. The defaults are a worker's."""

    ca: str = "PSUM_TLS_CA"
    cert: str = "PSUM_TLS_CERT"
    key: str = "PSUM_TLS_KEY"
    server_name: str = "PSUM_TLS_SERVER_NAME"


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """What a client shows to aggregators, and what it asks of them.

    Files are read for each connection, so a renewed file counts from the next connection on.

    Attributes:
        tls: The files for TLS; empty: TLS is not used. It is never used on unix sockets, which have an owner.
        server_name: The name that an aggregator's certificate must have; empty: the host in its address.
        token_file: The file with the token; empty: there is none.
        token: Returns the token if it is not in a file; None: it is, or there is none.
        names: The variables that these come from.
    """

    tls: TlsFiles
    server_name: str
    token_file: str = ""
    token: Callable[[], str] | None = None
    names: SettingNames = SettingNames()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The credentials that a worker's settings name."""
        return cls(tls=settings.tls, server_name=settings.tls_server_name, token_file=settings.token_file)

    def encrypts(self, address: str) -> bool:
        """Whether connections to this address use TLS."""
        return bool(self.tls) and not address.startswith("unix:")

    def check(self) -> None:
        """Reads all files once.

        Raises:
            ConfigurationError: One cannot be used.
        """
        self.tls.read()
        self.metadata()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call: the token, if there is one.

        Raises:
            ConfigurationError: The token file cannot be used. The text does not show what is in it.
        """
        if self.token is not None and (token := self.token()):
            return (("authorization", f"Bearer {token}"),)
        if not self.token_file:
            return ()
        words = read_file(self.token_file, "token_file").split()
        if len(words) != 1 or not words[0].isascii() or not words[0].decode().isprintable():
            raise ConfigurationError([f"token_file={self.token_file}: expected one token and nothing else"])
        return (("authorization", f"Bearer {words[0].decode()}"),)

    def aio_channel(self, address: str, options: _Options) -> grpc.aio.Channel:
        """A channel for asyncio.

        Raises:
            ConfigurationError: A file cannot be used.
        """
        if not self.encrypts(address):
            return grpc.aio.insecure_channel(address, options=tuple(options))
        return grpc.aio.secure_channel(address, self._channel_credentials(), options=(*options, *self._name_options()))

    def channel(self, address: str, options: _Options) -> grpc.Channel:
        """A channel for threads.

        Raises:
            ConfigurationError: A file cannot be used.
        """
        if not self.encrypts(address):
            return grpc.insecure_channel(address, options=tuple(options))
        return grpc.secure_channel(address, self._channel_credentials(), options=(*options, *self._name_options()))

    def data_context(self) -> ssl.SSLContext:
        """The TLS context of a data connection. There, a secret takes the place of this side's certificate.

        Raises:
            ConfigurationError: A file cannot be used.
        """
        self.tls.read()
        return ssl.create_default_context(cafile=self.tls.ca)

    def data_name(self, host: str) -> str | None:
        """The name that the aggregator's certificate must have on a data connection; None without TLS."""
        return (self.server_name or host) if self.tls else None

    def _channel_credentials(self) -> grpc.ChannelCredentials:
        pem = self.tls.read()
        return grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)

    def _name_options(self) -> tuple[tuple[str, str], ...]:
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()
