"""Ranges in lists of addresses: host-{0..15}:50051 means sixteen addresses."""

import re
from typing import Final

from psum.wire.addresses import parse_destination

#: The longest list. No fleet is as large. Without a limit, one digit too many in a range could exhaust memory.
MAX_ADDRESSES: Final = 4096

_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")


def parse_destinations(text: str) -> tuple[str, ...]:
    """Return the addresses of a comma-separated list. An item may have one range. Empty items are ignored.

    Raises:
        ValueError: An item is not an address, a range is malformed, or the list is too long.
    """
    found: list[str] = []
    for item in text.split(","):
        if item.strip():
            found += (parse_destination(address) for address in expand(item.strip()))
    if len(found) > MAX_ADDRESSES:
        raise ValueError(f"the list has {len(found)} addresses; at most {MAX_ADDRESSES} are allowed")
    return tuple(found)


def expand(text: str) -> tuple[str, ...]:
    """Expand a text with one range into several, in order. A text without a range is returned alone.

    Numbers have at least as many digits as the first one: {8..10} gives 8, 9, 10, and {08..10} gives 08, 09, 10.

    Raises:
        ValueError: The braces are not a range, there is more than one range, or a range is empty or too long.
    """
    match = _RANGE.search(text)
    if match is None:
        if "{" in text or "}" in text:
            raise ValueError(f"{text!r} has braces without a range; expected a range such as {{0..15}}")
        return (text,)
    before, after = text[: match.start()], text[match.end() :]
    if any(brace in before + after for brace in "{}"):
        raise ValueError(f"{text!r} has more than one range; use several items with commas")
    first, last = match.groups()
    if int(first) > int(last):
        raise ValueError(f"{match[0]} in {text!r} has its larger number first; expected the smaller number first")
    if (count := int(last) - int(first) + 1) > MAX_ADDRESSES:
        raise ValueError(f"{match[0]} in {text!r} has {count} numbers; at most {MAX_ADDRESSES} are allowed")
    return tuple(f"{before}{number:0{len(first)}}{after}" for number in range(int(first), int(last) + 1))
