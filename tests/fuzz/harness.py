"""The fuzzing harness: the interface of a target, reproducible cases, and the monitor of the log."""

import dataclasses
import logging
from collections import Counter
from random import Random
from typing import Final, Protocol

from psum.runtime import TextFormatter

#: Loggers whose errors always mean a bug in psum.
_ERRORS_ARE_BUGS: Final = ("psum.aggregator.service.service", "asyncio", "grpc._cython.cygrpc")

#: Messages that gRPC itself logs, with tracebacks: for headers and method names that are not valid text, for peers that
#: have disconnected, and for late events of closed event loops.
_GRPC_MESSAGES: Final = (
    "Invalid encoding on ",
    "codec can't decode",
    "UnicodeDecodeError('utf-8'",
    "ExecuteBatchError raised in core",
    "PollerCompletionQueue",
)


class ViolationError(AssertionError):
    """The code under test violated a rule."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One input. Its text form is enough to reproduce it exactly.

    Attributes:
        target: Name of the target.
        seed: The seed of the run.
        number: Index of the input within the run.
    """

    target: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.target}:{self.seed}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Parse the text form of a case.

        Raises:
            ValueError: The text is not a case.
        """
        target, seed, number = text.split(":")
        return cls(target, int(seed), int(number))

    def random(self) -> Random:
        """Return the generator of all random decisions of this case."""
        return Random(str(self))


class Target(Protocol):
    """A part of psum under test. `outcomes` counts the results of inputs by kind."""

    outcomes: Counter[str]

    async def start(self) -> None:
        """Prepare the target. Called before the first input."""

    async def feed(self, random: Random) -> None:
        """Generate one input and feed it to the target.

        Raises:
            ViolationError: The target violated a rule.
        """

    async def settle(self) -> None:
        """Check that nothing is left of earlier inputs. Called now and then, and after the last input."""

    async def stop(self) -> None:
        """Release the target. Called after the last input."""


class LogMonitor(logging.Handler):
    """Detects log records that report a bug in psum, and log lines that a peer has forged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(TextFormatter())
        self.complaints: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Check one record."""
        text = record.getMessage()
        if record.name in ("grpc._cython.cygrpc", "asyncio") and any(known in text for known in _GRPC_MESSAGES):
            return
        line = self.format(record)
        forged = "\n" in line and record.exc_info is None
        if record.exc_info or forged or (record.levelno >= logging.ERROR and record.name in _ERRORS_ARE_BUGS):
            self.complaints.append(line)

    def check(self) -> None:
        """Raise ViolationError if there were complaints since the last call."""
        if self.complaints:
            complaints, self.complaints = self.complaints, []
            raise ViolationError("the log contains " + "\n".join(complaints))


def error_signature(text: str) -> str:
    """Return the constant words of an error's text, to group errors by kind."""
    words = []
    for word in text.split()[:40]:
        plain = word.strip("(),.;:'\"")
        if plain.isalpha() and plain.islower():
            words.append(plain)
        if len(words) == 8:
            break
    return " ".join(words)
