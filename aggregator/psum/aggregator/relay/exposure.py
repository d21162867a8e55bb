"""Whether the workers' token would travel unencrypted to another machine, for anybody between to read and use."""

from collections.abc import Iterable

from psum.client.transport.credentials import Credentials
from psum.wire import is_local
from psum.wire.errors import DeniedError


def exposure(what: str, addresses: Iterable[str], credentials: Credentials, *, insecure: bool) -> DeniedError | None:
    """Why a relay may not connect to some aggregator, None if it may connect to all.

    Args:
        what: What it may not do, up to the address: the beginning of the error.
        addresses: Where it connects to.
        credentials: What it shows there, with the token.
        insecure: Whether the token may travel unencrypted.
    """
    if insecure or not (credentials.token_file or (credentials.token is not None and credentials.token())):
        return None
    for address in addresses:
        if not is_local(address) and not credentials.encrypts(address):
            return DeniedError(
                f"{what} {address}: the token would travel unencrypted, for anybody between to read and use; give the"
                " relay the authority of that aggregator's certificate (PSUM_RELAY_TLS_CA), say --insecure where it is"
                " started, or give the workers PSUM_RELAY=off"
            )
    return None
