"""The aggregator's side of TLS: certificates that are renewed without a restart."""

import grpc

from psum.wire import TlsFiles, WatchedFiles


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """TLS with this certificate, and where there is a CA, only for clients that have a certificate from it.

    The files are looked at in every handshake, and read again where they have changed: connections that exist go on as
    they are, new ones see the new certificate and CA.

    Raises:
        ConfigurationError: The files cannot be used.
    """

    def configuration() -> grpc.ServerCertificateConfiguration:
        pem = files.read()
        assert pem.cert is not None
        assert pem.key is not None
        return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], root_certificates=pem.ca)

    watched = WatchedFiles(files.paths, configuration)
    return grpc.dynamic_ssl_server_credentials(watched.get(), watched.get, bool(files.ca))
