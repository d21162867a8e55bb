"""Addresses of an aggregator that other machines can reach without authentication or encryption."""

from collections.abc import Iterator

from psum.aggregator.declared_settings import DeclaredSettings
from psum.wire import is_local


def exposed(settings: DeclaredSettings) -> Iterator[str]:
    """Yields a sentence for each of them: what others could do there, and what to change."""
    for address in settings.listen:
        if is_local(address):
            continue
        if not settings.tls_cert:
            yield (
                f"listen={address}: other machines can reach this address, and connections would not be encrypted;"
                " give a certificate (--tls-cert, --tls-key), listen on a loopback address or a unix socket, or say"
                " --insecure"
            )
        elif not settings.tls_client_ca and not settings.token_file:
            yield (
                f"listen={address}: other machines can reach this address, and anybody there could join a job; ask"
                " workers for certificates (--tls-client-ca) or for tokens (--token-file), or say --insecure"
            )
