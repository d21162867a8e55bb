"""Split a program's output into complete lines and the row that it is rewriting."""

import codecs
from typing import Final

#: Longer lines are passed on in pieces, so that memory stays bounded.
_MAX_LINE_CHARACTERS: Final = 1 << 16


class LineSplitter:
    """Split one output stream of a program.

    A progress bar rewrites its row after '\\r'. As on a terminal, only the last state of a row counts: a complete line
    is its last state, and `row` is the present state of an incomplete line. A blank row counts as no row, because
    progress bars remove themselves that way.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest = ""
        """The incomplete line, without overwritten states."""

    @property
    def row(self) -> str | None:
        """The present state of the line that is being rewritten, None without such a line."""
        state = _visible(self._rest) if "\r" in self._rest else ""
        return state if state.strip() else None

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes and return the lines that they complete, without line ends."""
        *lines, rest = (self._rest + self._decode(data)).split("\n")
        overwritten, rewritten, last = rest.rpartition("\r")
        self._rest = f"{_visible(overwritten)}\r{last}" if rewritten else rest
        if len(self._rest) > _MAX_LINE_CHARACTERS:
            lines.append(self._rest)
            self._rest = ""
        return [_visible(line) for line in lines]

    def close(self) -> list[str]:
        """Take the end of the stream and return the incomplete line, if any."""
        rest, self._rest = _visible(self._rest + self._decode(b"", True)), ""
        return [rest] if rest.strip() else []


def _visible(line: str) -> str:
    """Return the last state of a line, as a terminal shows it. A '\\r' right before the end belongs to the line end."""
    return next((state for state in reversed(line.split("\r")) if state), "")
