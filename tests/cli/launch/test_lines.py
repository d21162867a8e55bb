"""Splitting the output of programs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psum.cli.launch.lines import LineSplitter


@pytest.mark.parametrize(
    ("written", "lines", "row", "last"),
    [
        ("", [], None, []),
        ("one\ntwo\n", ["one", "two"], None, []),
        ("one\r\n\r\n", ["one", ""], None, []),
        ("no end", [], None, ["no end"]),
        ("1 %\r2 %\r", [], "2 %", ["2 %"]),
        ("\r1 %\r2 %", [], "2 %", ["2 %"]),
        ("1 %\r2 %\rdone\nnext", ["done"], None, ["next"]),
        ("1 %\r2 %\r\n", ["2 %"], None, []),
        ("1 %\r   \r", [], None, []),
        ("ä€\n", ["ä€"], None, []),
    ],
)
def test_lines_and_rows(written: str, lines: list[str], row: str | None, last: list[str]) -> None:
    """Complete lines, the row that is being rewritten, and the rest at the end of the stream."""
    splitter = LineSplitter()
    assert splitter.feed(written.encode()) == lines
    assert splitter.row == row
    assert splitter.close() == last


@given(st.text(alphabet="ab €\r\n"), st.integers(1, 4))
def test_the_pieces_that_output_comes_in_make_no_difference(text: str, size: int) -> None:
    """Lines and the last row do not depend on the sizes of reads."""
    data = text.encode()
    whole, pieces = LineSplitter(), LineSplitter()
    lines = whole.feed(data)
    assert [line for i in range(0, len(data), size) for line in pieces.feed(data[i : i + size])] == lines
    assert pieces.row == whole.row
    assert pieces.close() == whole.close()


def test_bytes_that_are_no_text_do_not_end_anything() -> None:
    """Invalid bytes become replacement characters, also if the stream ends within a character."""
    splitter = LineSplitter()
    assert splitter.feed(b"\xff\n\xe2\x82") == ["\N{REPLACEMENT CHARACTER}"]
    assert splitter.close() == ["\N{REPLACEMENT CHARACTER}"]


def test_a_line_without_an_end_does_not_grow_for_ever() -> None:
    """A long line is passed on in pieces without loss."""
    splitter = LineSplitter()
    pieces = [line for _ in range(100) for line in splitter.feed(b"x" * 10_000)]
    assert len(pieces) > 10
    assert "".join([*pieces, *splitter.close()]) == "x" * 1_000_000
