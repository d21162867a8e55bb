"""Whether the workers' token would travel unencrypted to another machine, for anybody between to read and use."""

from collections.abc import Iterable

from psum.client.transport.credentials import Credentials
from psum.wire import is_local


def exposed(addresses: Iterable[str], credentials: Credentials, *, insecure: bool) -> str | None:
    """The first address to which the token may not go, None if there is none.

    Args:
        addresses: Where a relay connects to.
        credentials: What it shows there, with the token.
        insecure: Whether the token may travel unencrypted.
    """
    if insecure or not (credentials.token_file or (credentials.token is not None and credentials.token())):
        return None
    return next((each for each in addresses if not is_local(each) and not credentials.encrypts(each)), None)
