"""Parsing the values of settings."""

import pytest

from psum.runtime import choice, duration, integer, items, size


@pytest.mark.parametrize(
    ("text", "value"),
    [("1048576", 1 << 20), ("512KiB", 512 << 10), ("16 MiB", 16 << 20), ("1.5kB", 1500), ("8gib", 8 << 30)],
)
def test_sizes_have_units(text: str, value: int) -> None:
    """Sizes are bytes, with decimal and binary units."""
    assert size(text) == value


@pytest.mark.parametrize(("text", "value"), [("30", 30), ("30s", 30), ("200ms", 0.2), ("1.5 m", 90), ("1h", 3600)])
def test_times_have_units(text: str, value: float) -> None:
    """Times are seconds, with units."""
    assert duration(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "-1", "1 MiB extra", "one", "1TiB!"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Text that is not a size raises ValueError."""
    with pytest.raises(ValueError, match="expected a size"):
        size(text)


@pytest.mark.parametrize("text", ["", "0", "-3", "inf", "3 days", "0.9ms", "481h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """Text that is not a time above zero raises ValueError."""
    with pytest.raises(ValueError, match="expected a time"):
        duration(text)


def test_a_size_beyond_all_memory_is_a_mistake_in_words() -> None:
    """Any number of digits gives a clear error."""
    with pytest.raises(ValueError, match="less than"):
        size("9" * 400)


def test_choices_and_lists() -> None:
    """Words match in any case. Lists ignore empty items."""
    assert choice("auto", "inline")(" Inline") == "inline"
    with pytest.raises(ValueError, match="expected one of auto, inline"):
        choice("auto", "inline")("fast")
    assert items(integer(0, 9))("1, 2,,3,") == (1, 2, 3)
