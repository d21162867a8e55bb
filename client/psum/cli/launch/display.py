"""Show the output of child processes: lines prefixed with the process's name, and progress as one row per process."""

import functools
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from psum.cli.launch.lines import LineSplitter

_COLOURS: Final = ("cyan", "green", "magenta", "yellow", "blue", "bright_red", "bright_cyan", "bright_green")


class Display:
    """Show the output of many programs. A context manager, which uses the bottom rows of a terminal while it is active.

    Lines go to the stream that they were written to, standard output or standard error. If one of these is a terminal,
    each program's progress is a row at the bottom that is overwritten in place. Without a terminal, only the last state
    of a row is shown.

    Args:
        lost: Called when an output stream's reader has gone. Nothing is written to the stream any more.
        held: Whether to hold all output back until `release`. It then goes to standard error, without progress.
    """

    def __init__(self, lost: Callable[[], None] = lambda: None, *, held: bool = False) -> None:
        file = next((file for file in (sys.stdout, sys.stderr) if file.isatty()), None)
        self._terminal = None if file is None else _Terminal(file)
        self._report_lost = lost
        self._lost: set[TextIO] = set()
        self._held: list[tuple[Source, list[str]]] | None = [] if held else None

    def __enter__(self) -> Self:
        if self._terminal is not None:
            self._terminal.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal is not None:
            self._attempt(self._terminal.file, self._terminal.stop)

    def source(self, name: str, *, error: bool, heard: Callable[[str], None] = lambda line: None) -> "Source":
        """Return a source for a program's standard output, or for its standard error.

        Args:
            name: The prefix of its lines.
            error: Whether it is for standard error.
            heard: Also called with each line.
        """
        return Source(self, name, sys.stderr if error or self._held is not None else sys.stdout, heard)

    def note(self, text: str) -> None:
        """Show a message of psum itself on standard error."""
        self._print(sys.stderr, lambda: Text(f"psum: {text}", style="bold"), lambda: f"psum: {text}\n")

    def release(self) -> None:
        """Show the output held back so far, and hold back no more."""
        held, self._held = self._held, None
        for source, lines in held or ():
            self.show(source, lines, None)

    def show(self, source: "Source", lines: list[str], row: str | None) -> None:
        """Show lines of a program, and the row that it is rewriting, if any."""
        if self._held is not None:
            self._held.append((source, lines))
            return
        if self._terminal is not None:
            self._attempt(self._terminal.file, functools.partial(self._terminal.set_row, source, row))
        if lines:
            self._print(source.file, lambda: _coloured(source, lines), lambda: _plain(source, lines))

    def _print(self, file: TextIO, coloured: Callable[[], Text], plain: Callable[[], str]) -> None:
        terminal = self._terminal
        if terminal is not None and file.isatty():
            self._attempt(terminal.file, lambda: terminal.print(coloured()))
        else:
            self._attempt(file, lambda: _write(file, plain()))

    def _attempt(self, file: TextIO, write: Callable[[], object]) -> None:
        if file in self._lost:
            return
        try:
            write()
        except OSError:
            # A pipe's reader has ended, or a terminal was closed. Python flushes its buffer again at exit, which must
            # not fail, so redirect the stream.
            self._lost.add(file)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, file.fileno())
            os.close(null)
            self._report_lost()


class _Terminal:
    """A terminal with fixed rows at the bottom. Lines scroll above them."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self._live = Live(
            console=Console(file=file, highlight=False, soft_wrap=True), auto_refresh=False, transient=True
        )
        self._rows: dict[Source, Text] = {}
        self.start = self._live.start
        self.stop = self._live.stop

    def set_row(self, source: "Source", row: str | None) -> None:
        """Show or remove the row of a source."""
        known = self._rows.pop(source, None)
        if row is not None:
            self._rows[source] = _coloured(source, [row])
        if known is not None or row is not None:
            ordered = sorted(self._rows.items(), key=lambda item: (len(item[0].name), item[0].name))
            rows = Text("\n", no_wrap=True, overflow="ellipsis").join(text for _, text in ordered)
            self._live.update(rows, refresh=True)

    def print(self, text: Text) -> None:
        """Show lines above the rows."""
        self._live.console.print(text)


class Source:
    """One output stream of a program.

    Attributes:
        name: The prefix of its lines.
        file: The stream that its lines go to.
    """

    def __init__(self, display: Display, name: str, file: TextIO, heard: Callable[[str], None]) -> None:
        self.name = name
        self._heard = heard
        self.file = file
        self._display = display
        self._splitter = LineSplitter()

    def feed(self, data: bytes) -> None:
        """Take bytes that the program has written."""
        self._take(self._splitter.feed(data), self._splitter.row)

    def close(self) -> None:
        """Take the end of the stream."""
        self._take(self._splitter.close(), None)

    def _take(self, lines: list[str], row: str | None) -> None:
        for line in lines:
            self._heard(line)
        self._display.show(self, lines, row)


def _plain(source: Source, lines: list[str]) -> str:
    # Not through rich, which would change the text.
    return "".join(f"[{source.name}] {line}\n" for line in lines)


def _coloured(source: Source, lines: list[str]) -> Text:
    colour = _COLOURS[int(source.name) % len(_COLOURS)] if source.name.isdecimal() else "dim"
    return Text("\n").join(Text.assemble((f"[{source.name}] ", colour), Text.from_ansi(line)) for line in lines)


def _write(file: TextIO, text: str) -> None:
    # As bytes, because the stream's encoding may lack characters that programs write.
    file.buffer.write(text.encode(errors="replace"))
    file.flush()
