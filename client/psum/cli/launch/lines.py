"""What a program prints, taken apart into the lines that stay and the row that it keeps rewriting."""

import codecs
from typing import Final

#: A line that grows longer than this without an end is passed on in pieces, so that memory stays bounded.
_MAX_LINE_CHARACTERS: Final = 1 << 16


class LineSplitter:
    """Follows one output stream of a program.

    A progress bar rewrites its row by '\\r'. Of what was rewritten a terminal shows the last state alone, and so does
    this: a line that is complete is what stays of it, and `row` is the state of one that is still being rewritten. A
    row of blanks is none; so do progress bars remove themselves.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest = ""
        """The line that has no end yet, without the states that were overwritten."""

    @property
    def row(self) -> str | None:
        """The present state of a line that is being rewritten, None where there is no such line."""
        state = _visible(self._rest) if "\r" in self._rest else ""
        return state if state.strip() else None

    def feed(self, data: bytes) -> list[str]:
        """Takes the next bytes, and returns the lines that they complete, without their ends."""
        *lines, rest = (self._rest + self._decode(data)).split("\n")
        overwritten, rewritten, last = rest.rpartition("\r")
        self._rest = f"{_visible(overwritten)}\r{last}" if rewritten else rest
        if len(self._rest) > _MAX_LINE_CHARACTERS:
            lines.append(self._rest)
            self._rest = ""
        return [_visible(line) for line in lines]

    def close(self) -> list[str]:
        """The stream ended: returns what had no end as a line, where there is something."""
        rest, self._rest = _visible(self._rest + self._decode(b"", True)), ""
        return [rest] if rest.strip() else []


def _visible(line: str) -> str:
    """What a terminal shows of a line in the end. A '\\r' right before the end is part of the end."""
    return next((state for state in reversed(line.split("\r")) if state), "")
