"""Ranges in lists of addresses: host-{0..15}:50051 stands for sixteen of them."""

import re
from typing import Final

from psum.wire.addresses import parse_destination

#: The longest list. No fleet is as large; a range with a digit too many would otherwise fill the memory.
MAX_ADDRESSES: Final = 4096

_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")


def parse_destinations(text: str) -> tuple[str, ...]:
    """The addresses of a list with commas, empty items left out, each item alone or with one range.

    Raises:
        ValueError: One is no address, a range is none, or the list is too long.
    """
    found: list[str] = []
    for item in text.split(","):
        if item.strip():
            found += (parse_destination(address) for address in expand(item.strip()))
    if len(found) > MAX_ADDRESSES:
        raise ValueError(f"a list of {len(found)} addresses; at most {MAX_ADDRESSES} are allowed")
    return tuple(found)


def expand(text: str) -> tuple[str, ...]:
    """The texts that one with a range stands for, in order; one without is itself.

    All numbers have at least as many digits as the first: {8..10} makes 8, 9 and 10, {08..10} makes 08, 09 and 10.

    Raises:
        ValueError: It has braces that are no range, more than one range, or one that is empty or too long.
    """
    match = _RANGE.search(text)
    if match is None:
        if "{" in text or "}" in text:
            raise ValueError(f"{text!r} has braces that are no range; expected one such as {{0..15}}")
        return (text,)
    before, after = text[: match.start()], text[match.end() :]
    if any(brace in before + after for brace in "{}"):
        raise ValueError(f"{text!r} has more than one range; list the rest with commas")
    first, last = match.groups()
    if int(first) > int(last):
        raise ValueError(f"{match[0]} in {text!r} begins behind its end; expected the lower number first")
    if (count := int(last) - int(first) + 1) > MAX_ADDRESSES:
        raise ValueError(f"{match[0]} in {text!r} has {count} numbers; at most {MAX_ADDRESSES} are allowed")
    return tuple(f"{before}{number:0{len(first)}}{after}" for number in range(int(first), int(last) + 1))
