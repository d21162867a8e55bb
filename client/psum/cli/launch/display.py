"""What the children of a launcher write, line by line with the name of who wrote it, and progress as one row each."""

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
    """Shows what many programs write. A context manager, during which a terminal's lower rows are its own.

    Lines go to standard output or standard error as they were written. Where one of them is a terminal, progress is one
    row per writer at the bottom, overwritten in place; elsewhere it is left out, but for a row's last state.

    Args:
        lost: Called when an output cannot be written to any more, since its reader has gone. It is left alone then.
        held: What programs write is kept until `release`, all of it for standard error, and there is no progress.
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
        """What takes the output of a program, or its errors, to be shown under a name. `heard` gets each line, too."""
        return Source(self, name, sys.stderr if error or self._held is not None else sys.stdout, heard)

    def note(self, text: str) -> None:
        """Shows something that psum itself has to say, as an error message."""
        self._print(sys.stderr, lambda: Text(f"psum: {text}", style="bold"), lambda: f"psum: {text}\n")

    def release(self) -> None:
        """Shows what was held, and from now on what comes."""
        held, self._held = self._held, None
        for source, lines in held or ():
            self.show(source, lines, None)

    def show(self, source: "Source", lines: list[str], row: str | None) -> None:
        """Shows lines that a program has written, and the row that it is rewriting, if any."""
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
            # A pipe whose reader has ended, or a terminal that was closed. What Python still holds of the output must
            # not fail once more when this process ends.
            self._lost.add(file)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, file.fileno())
            os.close(null)
            self._report_lost()


class _Terminal:
    """A terminal with rows at its bottom that stay there while lines scroll by above them."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self._live = Live(
            console=Console(file=file, highlight=False, soft_wrap=True), auto_refresh=False, transient=True
        )
        self._rows: dict[Source, Text] = {}
        self.start = self._live.start
        self.stop = self._live.stop

    def set_row(self, source: "Source", row: str | None) -> None:
        """Shows the row of a source, or none."""
        known = self._rows.pop(source, None)
        if row is not None:
            self._rows[source] = _coloured(source, [row])
        if known is not None or row is not None:
            ordered = sorted(self._rows.items(), key=lambda item: (len(item[0].name), item[0].name))
            rows = Text("\n", no_wrap=True, overflow="ellipsis").join(text for _, text in ordered)
            self._live.update(rows, refresh=True)

    def print(self, text: Text) -> None:
        """Shows lines above the rows."""
        self._live.console.print(text)


class Source:
    """One output stream of a program, on its way to the display.

    Attributes:
        name: What its lines are prefixed with.
        file: Where they go.
    """

    def __init__(self, display: Display, name: str, file: TextIO, heard: Callable[[str], None]) -> None:
        self.name = name
        self._heard = heard
        self.file = file
        self._display = display
        self._splitter = LineSplitter()

    def feed(self, data: bytes) -> None:
        """The program has written these bytes."""
        self._take(self._splitter.feed(data), self._splitter.row)

    def close(self) -> None:
        """It will write no more."""
        self._take(self._splitter.close(), None)

    def _take(self, lines: list[str], row: str | None) -> None:
        for line in lines:
            self._heard(line)
        self._display.show(self, lines, row)


def _plain(source: Source, lines: list[str]) -> str:
    # Not through rich: what a program wrote is passed on as it is.
    return "".join(f"[{source.name}] {line}\n" for line in lines)


def _coloured(source: Source, lines: list[str]) -> Text:
    colour = _COLOURS[int(source.name) % len(_COLOURS)] if source.name.isdecimal() else "dim"
    return Text("\n").join(Text.assemble((f"[{source.name}] ", colour), Text.from_ansi(line)) for line in lines)


def _write(file: TextIO, text: str) -> None:
    # As bytes: a terminal's or a file's encoding may lack what the programs write.
    file.buffer.write(text.encode(errors="replace"))
    file.flush()
