"""Every exception that psum raises on purpose.

PsumError
├── ConfigurationError      settings that cannot be used (also a ValueError)
├── ConnectError            an aggregator could not be reached, or did not answer
├── AggregatorLostError     the stream to an aggregator broke
├── ProtocolError           a peer sent what the protocol does not allow
├── ClosedError             the client was closed, or its process is ending
├── ForkedError             the client belongs to the process that this one was forked from
├── OutOfStepError          ranks were to hold the same tensors, and do not
└── FaultError              an aggregator reported a failure
    ├── InvalidError        this process broke the protocol, says the aggregator
    ├── DisagreementError   ranks disagree on what they must agree on
    ├── TakenError          the rank or the job's name is taken
    ├── WorkerLostError     a worker vanished, or left while others still needed it
    ├── RoundTimeoutError   a round waited too long for its slowest rank
    ├── AbortedError        a rank said that it cannot contribute
    ├── ExhaustedError      the aggregator lacks the memory for what was declared, or a file descriptor for the worker
    ├── DeniedError         the worker may not do this
    └── InternalError       the aggregator itself failed

A FaultError is what one rank's aggregator tells to all: its text is the same on every rank.
"""

from collections.abc import Iterable
from typing import ClassVar

from psum.v1 import aggregator_pb2 as pb


class PsumError(Exception):
    """Base of everything that psum raises on purpose. The text is written for the person who reads it."""


class ConfigurationError(PsumError, ValueError):
    """Settings that cannot be used; lists every mistake at once.

    Attributes:
        mistakes: One sentence for each.
    """

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("psum cannot start with these settings:\n" + "\n".join(f"  - {m}" for m in self.mistakes))


class ConnectError(PsumError):
    """An aggregator could not be reached, or did not answer, within the time allowed.

    Attributes:
        address: The aggregator's address as configured.
    """

    def __init__(self, text: str, *, address: str) -> None:
        self.address = address
        super().__init__(text)


class AggregatorLostError(PsumError):
    """The stream to an aggregator broke while the job was running.

    Attributes:
        address: The aggregator's address as configured.
    """

    def __init__(self, text: str, *, address: str) -> None:
        self.address = address
        super().__init__(text)


class ProtocolError(PsumError):
    """A peer sent what the protocol does not allow. Ends the stream, touches nothing else."""


class ClosedError(PsumError):
    """The client was closed, or the process is ending, before the operation was complete."""


class ForkedError(PsumError):
    """The client belongs to the process that this one was forked from, and cannot be used here."""


class OutOfStepError(PsumError):
    """Ranks were to hold the same tensors and do not; the text, the same on every rank, names the first that differ.

    Attributes:
        ranks: The ranks that hold something else than most do, or than rank 0 where as many do.
    """

    def __init__(self, text: str, *, ranks: Iterable[int]) -> None:
        self.ranks = tuple(ranks)
        super().__init__(text)


class FaultError(PsumError):
    """An aggregator reported a failure.

    Attributes:
        key: The key's id on the wire, or None where the whole job failed.
        round: The round, where one is meant.
        ranks: The ranks that the failure is about.
    """

    code: ClassVar[pb.FaultCode.ValueType] = pb.FAULT_CODE_UNSPECIFIED

    def __init__(
        self, text: str, *, key: int | None = None, round: int | None = None, ranks: Iterable[int] = ()
    ) -> None:
        self.key = key
        self.round = round
        self.ranks = tuple(ranks)
        super().__init__(text)

    @property
    def kind(self) -> str:
        """What kind of failure it is, in a word such as worker_lost."""
        return pb.FaultCode.Name(self.code).removeprefix("FAULT_CODE_").lower()

    def to_message(self) -> pb.Fault:
        """The fault as it crosses the wire."""
        return pb.Fault(code=self.code, text=str(self), id=self.key, round=self.round, ranks=self.ranks)

    @staticmethod
    def from_message(message: pb.Fault) -> "FaultError":
        """The exception that a received fault stands for; an unknown code gives a plain FaultError."""
        return _CLASSES.get(message.code, FaultError)(
            message.text,
            key=message.id if message.HasField("id") else None,
            round=message.round if message.HasField("round") else None,
            ranks=message.ranks,
        )


class InvalidError(FaultError):
    """This process sent what the aggregator does not allow: its ProtocolError, seen from the other side."""

    code = pb.FAULT_CODE_INVALID


class DisagreementError(FaultError):
    """Ranks disagree on what they must agree on; the text shows both sides."""

    code = pb.FAULT_CODE_DISAGREEMENT


class TakenError(FaultError):
    """The rank or the job's name is taken."""

    code = pb.FAULT_CODE_TAKEN


class WorkerLostError(FaultError):
    """A worker vanished, or left while others still needed it."""

    code = pb.FAULT_CODE_WORKER_LOST


class RoundTimeoutError(FaultError):
    """A round waited too long for its slowest rank."""

    code = pb.FAULT_CODE_TIMEOUT


class AbortedError(FaultError):
    """A rank said that it cannot contribute."""

    code = pb.FAULT_CODE_ABORTED


class ExhaustedError(FaultError):
    """The aggregator lacks the memory for what was declared, or a file descriptor for the worker."""

    code = pb.FAULT_CODE_EXHAUSTED


class DeniedError(FaultError):
    """The worker may not do this."""

    code = pb.FAULT_CODE_DENIED


class InternalError(FaultError):
    """The aggregator itself failed; its log says more."""

    code = pb.FAULT_CODE_INTERNAL


_CLASSES: dict[int, type[FaultError]] = {
    cls.code: cls
    for cls in (
        InvalidError,
        DisagreementError,
        TakenError,
        WorkerLostError,
        RoundTimeoutError,
        AbortedError,
        ExhaustedError,
        DeniedError,
        InternalError,
    )
}
