"""Bearer tokens, and the jobs that they open."""

import hmac
import re
from collections.abc import Iterable
from typing import Final

from psum.runtime import WatchedFiles, read_file
from psum.wire.errors import ConfigurationError

#: The characters that RFC 6750 allows in a token, and enough of them that it cannot be guessed.
_TOKEN: Final = re.compile(rb"[A-Za-z0-9._~+/=-]{16,4096}")


class Tokens:
    """The tokens of a token file.

    Each line has a token, or a job's name and a token. Only its own tokens open a job that is named; the tokens without
    a name open every other job. Several tokens for the same job are all valid, so that a token can be replaced while
    both are in use. Empty lines and lines that begin with # are ignored.

    Args:
        content: The file's content.
        path: Its path, for errors. Errors never show a token.

    Raises:
        ConfigurationError: Some lines cannot be used; it lists all of them.
    """

    def __init__(self, content: bytes, path: str) -> None:
        self._general: list[bytes] = []
        self._of_job: dict[str, list[bytes]] = {}
        mistakes = []
        for number, line in enumerate(content.splitlines(), 1):
            if not line.strip() or line.lstrip().startswith(b"#"):
                continue
            *name, token = line.strip().rsplit(None, 1)
            if not _TOKEN.fullmatch(token):
                mistakes.append(
                    f"token_file={path}: line {number}: expected TOKEN or JOB TOKEN, the token of 16 or more letters,"
                    " digits and ._~+/=-"
                )
            elif name:
                self._of_job.setdefault(name[0].decode(errors="replace"), []).append(token)
            else:
                self._general.append(token)
        if not mistakes and not self._general and not self._of_job:
            mistakes.append(f"token_file={path}: it contains no token")
        if mistakes:
            raise ConfigurationError(mistakes)

    @classmethod
    def watched(cls, path: str) -> WatchedFiles["Tokens"]:
        """The tokens of a file, read again when it changes.

        Raises:
            ConfigurationError: The file cannot be used.
        """
        return WatchedFiles([path], lambda: cls(read_file(path, "token_file"), path))

    def known(self, token: bytes) -> bool:
        """Whether this token opens any job."""
        return _equals_any(token, [*self._general, *(t for tokens in self._of_job.values() for t in tokens)])

    def permits(self, token: bytes, job: str) -> bool:
        """Whether this token opens the job of this name."""
        return _equals_any(token, self._of_job.get(job, self._general))


def bearer(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """The token in a call's metadata; empty if there is none."""
    for name, value in metadata:
        if name == "authorization":
            scheme, _, token = (value.encode() if isinstance(value, str) else value).partition(b" ")
            if scheme.lower() == b"bearer":
                return token.strip()
    return b""


def _equals_any(token: bytes, tokens: Iterable[bytes]) -> bool:
    """Whether a token equals any of these. The time that it takes reveals nothing about them."""
    found = False
    for one in tokens:
        found |= hmac.compare_digest(token, one)
    return found
