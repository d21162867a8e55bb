"""Parsers for the values of settings. Each raises ValueError with a text that says what was expected."""

import re
from collections.abc import Callable
from typing import Any, Final


def integer(least: int, most: int) -> Callable[[str], int]:
    """Return a parser for a whole number from `least` to `most`, both included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ValueError(f"expected a whole number from {least} to {most}")
        return value

    return parse


_SIZE_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def size(text: str) -> int:
    """Parse a size such as 1048576, 512KiB or 8GiB. Return bytes.

    Raises:
        ValueError: It is no size, or has 2^63 bytes or more.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _SIZE_UNITS:
        raise ValueError("expected a size such as 1048576, 512KiB, 16MiB or 8GiB")
    bytes_given = float(match[1]) * _SIZE_UNITS[match[2].lower()]
    if bytes_given >= 2**63:
        raise ValueError("expected a size of less than 2^63 bytes")
    return int(bytes_given)


_TIME_UNITS: Final = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

#: Within the limits of gRPC, which takes milliseconds in 31 bits.
_LEAST_SECONDS: Final = 0.001
_MOST_SECONDS: Final = 480 * 3600.0


def duration(text: str) -> float:
    """Parse a time such as 30, 30s, 1.5m or 200ms. Return seconds.

    Raises:
        ValueError: It is no time, or shorter or longer than gRPC can wait.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _TIME_UNITS:
        raise ValueError("expected a time such as 30, 30s, 200ms or 2m")
    seconds = float(match[1]) * _TIME_UNITS[match[2].lower()]
    if not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
        raise ValueError(f"expected a time from {_LEAST_SECONDS * 1000:g}ms to {_MOST_SECONDS / 3600:g}h")
    return seconds


def choice(*allowed: str) -> Callable[[str], str]:
    """Return a parser for one of these words in any case."""

    def parse(text: str) -> str:
        word = text.strip().lower()
        if word not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return word

    return parse


def switch(text: str) -> bool:
    """Parses 1 as True and 0 as False.

    Raises:
        ValueError: It is neither.
    """
    return choice("0", "1")(text) == "1"


def items(parse: Callable[[str], Any] = str) -> Callable[[str], tuple[Any, ...]]:
    """Return a parser for a comma-separated list. It ignores empty items."""
    return lambda text: tuple(parse(item.strip()) for item in text.split(",") if item.strip())
