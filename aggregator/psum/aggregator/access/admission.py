"""Decides who may open a stream, and which jobs its token opens."""

import logging
from collections.abc import Callable, Iterable

from psum.aggregator.access.refusals import LimitedLog
from psum.aggregator.access.stream_limits import StreamLimits, host_of
from psum.aggregator.access.tokens import Tokens, bearer
from psum.aggregator.settings import Settings
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DeniedError

_log = logging.getLogger(__name__)

Metadata = Iterable[tuple[str, str | bytes]]


class Admission:
    """Admits peers, or refuses them.

    Args:
        settings: The aggregator's settings.

    Raises:
        ConfigurationError: The token file cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._tokens = Tokens.watched(settings.token_file) if settings.token_file else None
        self._limits = StreamLimits(settings.max_streams)
        self._limited_log = LimitedLog(_log)

    def enter(self, peer: str) -> str | None:
        """Counts a stream that begins. Returns why it is refused; None: it counts until `leave`."""
        if self._limits.enter(peer):
            return None
        host = host_of(peer)
        text = (
            f"{host} has {self._limits.limit} streams open, as many as one host may have (PSUM_MAX_STREAMS); raise that"
            " on the aggregator, or let some of its workers end first"
        )
        self._limited_log.warn("streams", host, "refused another stream: %s", text)
        return text

    def leave(self, peer: str) -> None:
        """Stops counting an admitted stream that has ended."""
        self._limits.leave(peer)

    def token(self, metadata: Metadata, peer: str) -> bytes:
        """The token that a peer sends.

        Raises:
            DeniedError: A token is required, and this one opens no job.
        """
        token = bearer(metadata)
        if self._tokens is not None and not self._tokens.get().known(token):
            kind = "unknown" if token else "no"
            self._limited_log.warn(f"{kind} token", host_of(peer), "peer %s: refused, %s token", peer, kind)
            raise DeniedError(
                f"{peer} was refused: this aggregator requires a token, and"
                f" {'it does not know the one that came' if token else 'none came'}; put the job's token into a file,"
                " and its path into PSUM_TOKEN_FILE"
            )
        return token

    def permit(self, token: bytes, hello: pb.Hello, peer: str) -> None:
        """Checks whether a peer's token opens the job that it wants to join.

        Raises:
            DeniedError: It does not.
        """
        if self._tokens is not None and not self._tokens.get().permits(token, hello.job):
            self._limited_log.warn(
                f"token of {hello.job}",
                host_of(peer),
                "peer %s, rank %d: refused, its token is not one of job %r",
                peer,
                hello.rank,
                hello.job,
            )
            raise DeniedError(
                f"rank {hello.rank} of job {hello.job!r} ({peer}) was refused: its token is not one of this job's; give"
                " it the job's token in PSUM_TOKEN_FILE, or another PSUM_JOB"
            )

    def opens(self, token: bytes) -> Callable[[str], bool]:
        """Returns a function that tells whether a token opens the job of a name."""
        tokens = self._tokens.get() if self._tokens is not None else None
        return lambda name: tokens is None or tokens.permits(token, name)
