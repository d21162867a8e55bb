"""Codecs: what a payload looks like on its way between worker and aggregator.

A payload passes through its key's codec at four places, two on each side, and nowhere else:

    the worker encodes a contribution     psum.client.core.key_rounds
    the aggregator decodes it             psum.aggregator.service.receiver
    the aggregator encodes a sum          psum.aggregator.service.summation
    the worker decodes it                 psum.client.core.running_operations

Sums, budgets, credit and statistics count decoded bytes. Payloads below 64 KiB pass through the codec too. A sum that
a worker gives back after an aggregator was started again travels decoded.
"""

from typing import Final, Protocol


class Codec(Protocol):
    """Encodes and decodes payloads. Used from several threads at once.

    Every rank must end up with the same bits, also one that gets a sum again that another rank gave back. So encoding
    is deterministic, and `decode(encode(decode(data)))` equals `decode(data)`.
    """

    def most(self, size: int) -> int:
        """The most bytes that a payload of this size has when it is encoded."""

    def encode(self, payload: memoryview) -> memoryview:
        """The encoded form, flat bytes in memory that nobody else changes.

        Args:
            payload: Whole elements, flat bytes; not changed.
        """

    def decode(self, data: memoryview, size: int) -> memoryview:
        """The payload, flat bytes.

        Args:
            data: What came; not changed. The result may be a view of it.
            size: How many bytes the payload must have.

        Raises:
            ProtocolError: The data is not the encoded form of such a payload.
        """


#: The number of the codec that changes nothing.
IDENTITY: Final = 0

#: All codecs by number; None changes nothing and costs nothing. A new codec is a row here, and a field of Key in the
#: protocol that names it.
CODECS: Final[dict[int, Codec | None]] = {IDENTITY: None}


def codec_of(number: int = IDENTITY) -> Codec | None:
    """The codec of this number, None for the one that changes nothing."""
    return CODECS[number]
