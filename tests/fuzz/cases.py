"""What a fuzzed part is to the fuzzer, and how a case is told from all others."""

import dataclasses
import logging
from collections import Counter
from random import Random
from typing import Final, Protocol

from psum.runtime import TextFormatter

#: Loggers that report errors only where the product itself is wrong.
_NEVER_WRONG: Final = ("psum.aggregator.service.service", "asyncio", "grpc._cython.cygrpc")

#: What gRPC says itself, with a traceback: of headers and names of methods that are no text, of a peer that has gone,
#: and, in a process with many event loops, of a late event for one that was closed.
_OF_GRPC: Final = (
    "Invalid encoding on ",
    "codec can't decode",
    "UnicodeDecodeError('utf-8'",
    "ExecuteBatchError raised in core",
    "PollerCompletionQueue",
)


class ViolationError(AssertionError):
    """The product did what it must not do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One input. It is made again, the same to the bit, from what its text says.

    Attributes:
        target: The part that it is for.
        seed: The seed of the run.
        number: Its number within the run.
    """

    target: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.target}:{self.seed}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> "Case":
        """The case that a text stands for.

        Raises:
            ValueError: It stands for none.
        """
        target, seed, number = text.split(":")
        return cls(target, int(seed), int(number))

    def random(self) -> Random:
        """Where every decision of this case comes from."""
        return Random(str(self))


class Target(Protocol):
    """A part of psum under fuzzing. What comes of an input is counted in `outcomes`, by kind."""

    outcomes: Counter[str]

    async def start(self) -> None:
        """Before the first input."""

    async def feed(self, random: Random) -> None:
        """Makes one input and feeds it.

        Raises:
            ViolationError: The product did what it must not do.
        """

    async def settle(self) -> None:
        """Now and then, and after the last input: nothing must be left of those before."""

    async def stop(self) -> None:
        """After the last input."""


class LogWatch(logging.Handler):
    """Sees to it that the log tells of no failure of the product's own, and that peers cannot forge lines of it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(TextFormatter())
        self.complaints: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Looks at one record."""
        text = record.getMessage()
        if record.name in ("grpc._cython.cygrpc", "asyncio") and any(known in text for known in _OF_GRPC):
            return
        line = self.format(record)
        forged = "\n" in line and record.exc_info is None
        if record.exc_info or forged or (record.levelno >= logging.ERROR and record.name in _NEVER_WRONG):
            self.complaints.append(line)

    def check(self) -> None:
        """Raises ViolationError where something was complained of since the last call."""
        if self.complaints:
            complaints, self.complaints = self.complaints, []
            raise ViolationError("the log has " + "\n".join(complaints))


def kind_of(text: str) -> str:
    """What an error's text says, without what differs from case to case."""
    words = []
    for word in text.split()[:40]:
        plain = word.strip("(),.;:'\"")
        if plain.isalpha() and plain.islower():
            words.append(plain)
        if len(words) == 8:
            break
    return " ".join(words)
