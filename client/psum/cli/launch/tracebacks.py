"""Find the exception that ended a program, from its standard error."""

import re
from typing import Final

#: If more lines than this follow a traceback, the program went on after it.
_MAX_LINES_SINCE: Final = 50

#: The most characters of an error that are shown.
_MAX_CHARACTERS: Final = 300

_HEADER: Final = re.compile(r"Traceback \(most recent call last\):$")

#: The prefix of lines within an exception group.
_GROUP: Final = re.compile(r"^ *\| ")

#: An exception's module, name and text.
_EXCEPTION: Final = re.compile(r"(?:\w+\.)*(\w+)(: .*)?$")

_SYNTAX_ERROR: Final = re.compile(r"(SyntaxError|IndentationError|TabError): ")


class TracebackReader:
    """Read a program's standard error line by line, and find the exception of the last Python traceback."""

    def __init__(self) -> None:
        self._error = ""
        self._since = 0
        self._inside = False
        self._ignored = False
        self._indented = False

    @property
    def error(self) -> str:
        """The exception's name and the first line of its text, '' if the program did not end with a traceback."""
        return self._error if self._since <= _MAX_LINES_SINCE else ""

    def feed(self, line: str) -> None:
        """Take a line of standard error."""
        self._since += 1
        line = _GROUP.sub("", line)
        if line.startswith("Exception ignored in"):
            # Python reports errors in destructors this way, after the error that ended the program.
            self._ignored = True
        elif _HEADER.search(line):
            self._inside = True
        elif self._inside and line and not line[0].isspace():
            self._inside = False
            if not self._ignored:
                self._take(line)
            self._ignored = False
        elif self._indented and _SYNTAX_ERROR.match(line):
            # A syntax error in the program's own file has no traceback header.
            self._take(line)
        self._indented = line[:1].isspace()

    def _take(self, line: str) -> None:
        if found := _EXCEPTION.match(line):
            text = found[1] + (found[2] or "")
            self._error = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} …"
            self._since = 0
