"""TLS on the aggregator's side. Certificates can be renewed without a restart."""

import dataclasses
import ssl
import time
from collections.abc import Callable
from typing import Final

import grpc

from psum.runtime import TlsFiles, WatchedFiles

#: How long handshakes that have begun may take, at a renewal, to take hold of the previous certificate.
_HANDOVER_SECONDS: Final = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class _Loaded:
    for_streams: grpc.ServerCertificateConfiguration
    for_data: ssl.SSLContext


class ServerTls:
    """TLS with the aggregator's certificate. With a CA, only clients with a certificate from that CA are accepted.

    Each handshake checks whether the files have changed, and reads them again if so. Existing connections continue; new
    ones use the new certificate and CA.

    Args:
        files: The files.

    Raises:
        ConfigurationError: The files cannot be used.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._watched = WatchedFiles(files.paths, self._load)

    def credentials(self, begun: Callable[[], None]) -> grpc.ServerCredentials:
        """The credentials for one port of a gRPC server. Each port needs its own.

        A port frees its previous certificate as soon as it is told a new one, and a handshake in another thread may be
        about to use it: the process then crashes (https://github.com/grpc/grpc/issues/36693). So a port is told a
        certificate only if it has changed, and only after the other handshakes have taken hold of the previous one. No
        handshake begins meanwhile.

        Args:
            begun: Called when a handshake begins, in a thread of gRPC's.
        """
        told = self._watched.get()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal told
            begun()
            loaded = self._watched.get()
            if loaded is told:
                return None
            time.sleep(_HANDOVER_SECONDS)
            told = loaded
            return loaded.for_streams

        # gRPC's documentation allows None; the type stubs do not know that.
        return grpc.dynamic_ssl_server_credentials(
            told.for_streams,
            renewed,  # type: ignore[arg-type]
            bool(self._files.ca),
        )

    def data_context(self) -> ssl.SSLContext:
        """The context of the next data connection. It asks for no certificate, because the worker shows a secret."""
        return self._watched.get().for_data

    def _load(self) -> _Loaded:
        pem = self._files.read()
        assert pem.cert is not None
        assert pem.key is not None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._files.cert, self._files.key)
        return _Loaded(
            grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], root_certificates=pem.ca), context
        )
