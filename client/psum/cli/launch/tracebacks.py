"""The error that a program ended with, as far as its standard error shows it."""

import re
from typing import Final

#: A traceback with more lines than this after it is not what the program ended with.
_MAX_LINES_SINCE: Final = 50

#: How much of an error is told, in characters.
_MAX_CHARACTERS: Final = 300

_HEADER: Final = re.compile(r"Traceback \(most recent call last\):$")

#: What Python draws in front of the lines of an exception group.
_GROUP: Final = re.compile(r"^ *\| ")

#: An exception's module, its name and what follows.
_EXCEPTION: Final = re.compile(r"(?:\w+\.)*(\w+)(: .*)?$")

_SYNTAX_ERROR: Final = re.compile(r"(SyntaxError|IndentationError|TabError): ")


class TracebackReader:
    """Follows the lines that a program writes to standard error, for the exception of the last Python traceback."""

    def __init__(self) -> None:
        self._error = ""
        self._since = 0
        self._inside = False
        self._ignored = False
        self._indented = False

    @property
    def error(self) -> str:
        """The exception's name and the first line of its text; '' where the program did not end with a traceback."""
        return self._error if self._since <= _MAX_LINES_SINCE else ""

    def feed(self, line: str) -> None:
        """The program has written a line."""
        self._since += 1
        line = _GROUP.sub("", line)
        if line.startswith("Exception ignored in"):
            # As Python says of what fails while it tidies up after the error.
            self._ignored = True
        elif _HEADER.search(line):
            self._inside = True
        elif self._inside and line and not line[0].isspace():
            self._inside = False
            if not self._ignored:
                self._take(line)
            self._ignored = False
        elif self._indented and _SYNTAX_ERROR.match(line):
            # That of the program's own file has no header.
            self._take(line)
        self._indented = line[:1].isspace()

    def _take(self, line: str) -> None:
        if found := _EXCEPTION.match(line):
            text = found[1] + (found[2] or "")
            self._error = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} …"
            self._since = 0
