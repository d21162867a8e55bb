"""Why a connection could not be made or secured, in words that tell what to do.

gRPC says little more than that a handshake failed or that a connection was closed. Python's own TLS says what is wrong
with a certificate. So after gRPC has failed, one more connection is made to find out.
"""

import contextlib
import socket
import ssl
import time
from typing import Final

from psum.client.transport.credentials import Credentials

#: How long a diagnosis may take to connect.
_PATIENCE_SECONDS: Final = 3.0

# X509_V_ERR_… of OpenSSL.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_WRONG_NAME: Final = (62, 64)

#: How long to wait after a connection was closed without a word. Another attempt then tells a refusal from an end.
_PAUSE_SECONDS: Final = 0.2

_OTHER_PROTOCOL: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


def diagnose(address: str, credentials: Credentials) -> str | None:
    """Connects to an aggregator, and says why it and this side do not trust each other. May block for some seconds.

    Returns:
        A sentence, None if TLS is not the cause.
    """
    if address.startswith("unix:"):
        return None
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        if not credentials.encrypts(address):
            with _connect(host, port) as connection:
                return _expect_plain(connection, credentials)
        for _ in range(2):
            with _connect(host, port) as connection, contextlib.suppress(_SilentError):
                return _try_tls(connection, credentials, credentials.server_name or host)
            # An aggregator that is ending closes its connections too, but accepts no further ones.
            time.sleep(_PAUSE_SECONDS)
        return _unwanted(credentials)
    except OSError:
        # Without a connection there is nothing to find out; gRPC reports that.
        return None


def unreachable(address: str) -> str | None:
    """Why the system cannot connect to an address, None if it can. May block for a second."""
    try:
        if address.startswith("unix:"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except OSError as error:
        return f"it cannot be connected to: {error.strerror or error}"
    return None


class _SilentError(Exception):
    """The other side closed a secured connection without a word."""


def _connect(host: str, port: str) -> socket.socket:
    return socket.create_connection((host, int(port)), timeout=_PATIENCE_SECONDS)


def _try_tls(connection: socket.socket, credentials: Credentials, name: str) -> str | None:
    files = credentials.tls
    context = ssl.create_default_context(cafile=files.ca)
    context.set_alpn_protocols(["h2"])
    if files.cert:
        context.load_cert_chain(files.cert, files.key, password="")
    try:
        with context.wrap_socket(connection, server_hostname=name) as tls:
            # With TLS 1.3 the server says only now whether it accepts this side's certificate. gRPC begins to talk at
            # once if it does, and says nothing if it does not.
            try:
                silent = not tls.recv(1)
            except ConnectionResetError:
                silent = True
            if silent:
                raise _SilentError
    except ssl.SSLCertVerificationError as error:
        return _distrust(error, credentials, name)
    except ssl.SSLError as error:
        return _refusal(error, credentials)
    return None


def _distrust(error: ssl.SSLCertVerificationError, credentials: Credentials, name: str) -> str:
    ca, names = credentials.tls.ca, credentials.names
    if error.verify_code == _EXPIRED:
        return "its certificate has expired; renew it (its tls_cert), or set the clock right"
    if error.verify_code == _NOT_YET_VALID:
        return "its certificate is not valid yet; is the clock right?"
    if error.verify_code in _WRONG_NAME:
        return (
            f"its certificate is not one for {name!r}; in PSUM_AGGREGATORS use a name that the certificate has, or set"
            f" {names.server_name} to one"
        )
    authority = f"an authority in {ca} ({names.ca})" if ca else f"a public authority, and {names.ca} names no other"
    return f"its certificate does not come from {authority}: {error.verify_message}"


def _refusal(error: ssl.SSLError, credentials: Credentials) -> str | None:
    reason = error.reason or str(error)
    if any(word in reason for word in _OTHER_PROTOCOL):
        has = credentials.names.ca if credentials.tls.ca else credentials.names.cert
        return f"it does not speak TLS, but this side has {has}; give it a certificate, or unset that"
    if "ALERT" in reason:
        return _unwanted(credentials)
    if "EOF" in reason:
        # It was closed before certificates were exchanged, as a proxy with no server behind it does.
        return None
    return f"the TLS handshake failed: {reason}"


def _unwanted(credentials: Credentials) -> str:
    cert, names = credentials.tls.cert, credentials.names
    if cert:
        return f"it does not accept this side's certificate, {cert} ({names.cert}); is it from the right authority?"
    return f"it asks for a certificate; set {names.cert} and {names.key}"


def _expect_plain(connection: socket.socket, credentials: Credentials) -> str | None:
    """A sentence if the other side speaks TLS, which this side does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(OSError), context.wrap_socket(connection):
        return f"it speaks TLS, this side does not; set {credentials.names.ca} to its authority's certificate"
    return None
