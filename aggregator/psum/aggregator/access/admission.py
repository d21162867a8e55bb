"""Who may open a stream, and to which job it may belong."""

import logging
from collections.abc import Callable, Iterable

from psum.aggregator.access.refusals import Sparing
from psum.aggregator.access.stream_limits import StreamLimits, host_of
from psum.aggregator.access.tokens import Tokens, bearer
from psum.aggregator.settings import Settings
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DeniedError

_log = logging.getLogger(__name__)

Metadata = Iterable[tuple[str, str | bytes]]


class Admission:
    """Lets peers in, or refuses them.

    Args:
        settings: The settings.

    Raises:
        ConfigurationError: The token file cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._tokens = Tokens.watched(settings.token_file) if settings.token_file else None
        self._peers = StreamLimits(settings.max_streams)
        self._sparing = Sparing(_log)

    def enter(self, peer: str) -> str | None:
        """A stream begins; returns why it is refused, None where it is counted until it leaves."""
        if self._peers.enter(peer):
            return None
        host = host_of(peer)
        text = f"{host} has {self._peers.limit} streams open, as many as it may have (max_streams)"
        self._sparing.warn("streams", host, "refused another stream: %s", text)
        return text

    def leave(self, peer: str) -> None:
        """A stream that was let in has ended."""
        self._peers.leave(peer)

    def token(self, metadata: Metadata, peer: str) -> bytes:
        """The token that a peer brings.

        Raises:
            DeniedError: It opens nothing here.
        """
        token = bearer(metadata)
        if self._tokens is not None and not self._tokens.get().known(token):
            kind = "unknown" if token else "no"
            self._sparing.warn(f"{kind} token", host_of(peer), "peer %s: refused, %s token", peer, kind)
            raise DeniedError(
                f"{peer} was refused: this aggregator asks for a token, and"
                f" {'it does not know the one that came' if token else 'none came'}; put the job's token into a file,"
                " and its path into PSUM_TOKEN_FILE"
            )
        return token

    def permit(self, token: bytes, hello: pb.Hello, peer: str) -> None:
        """A peer wants to join a job.

        Raises:
            DeniedError: Its token does not open this one.
        """
        if self._tokens is not None and not self._tokens.get().permits(token, hello.job):
            self._sparing.warn(
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
        """Whether a token opens a job, by its name."""
        tokens = self._tokens.get() if self._tokens is not None else None
        return lambda name: tokens is None or tokens.permits(token, name)
