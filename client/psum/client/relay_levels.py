"""What PSUM_RELAY says: a word, or the relays that a worker's tensors pass, the nearest first."""

import dataclasses
from typing import Final

from psum.wire import MAX_WORKERS, parse_destination

#: Use a relay if one is on this host. See psum.client.route.
AUTO: Final = "auto"

#: Use none.
OFF: Final = "off"


@dataclasses.dataclass(frozen=True, slots=True)
class Level:
    """A relay.

    Attributes:
        address: Its address.
        group_size: How many ranks it sums. None, on the first level only: as many as this node has workers.
    """

    address: str
    group_size: int | None


def parse_relay(text: str) -> str:
    """Checks a value of PSUM_RELAY, and returns it.

    Raises:
        ValueError: The text is no such value.
    """
    text = text.strip()
    parse_levels(text)
    return text


def parse_levels(text: str) -> tuple[Level, ...]:
    """The relays that a value of PSUM_RELAY names, the nearest first; none if it is a word.

    Raises:
        ValueError: The text is no such value.
    """
    if text in (AUTO, OFF):
        return ()
    return tuple(_level(item.strip(), first=index == 0) for index, item in enumerate(text.split(",")))


def _level(text: str, *, first: bool) -> Level:
    address, slash, size = text.rpartition("/")
    # The first relay needs no number, and every part of a socket's path may be one.
    if first and (text.startswith("unix:") or not slash):
        try:
            return Level(parse_destination(text), None)
        except ValueError as error:
            raise ValueError(f"expected auto, off or a relay's address ({error})") from None
    if not slash or not (size.isascii() and size.isdecimal()) or not 1 <= int(size) <= MAX_WORKERS:
        raise ValueError(
            f"{text!r} does not end with the number of ranks that this relay sums, such as rack-3:50051/16"
        )
    return Level(parse_destination(address), int(size))
