"""Every exception that psum raises on purpose.

PsumError
├── ConfigurationError      the settings cannot be used (also a ValueError)
├── ConnectError            an aggregator could not be reached, or did not answer
├── AggregatorLostError     the stream to an aggregator broke
├── ProtocolError           the other side violated the protocol
├── ClosedError             the client was closed, or its process is ending
├── ForkedError             the client belongs to the parent process of this fork
├── OutOfStepError          ranks hold different tensors where they should hold the same
├── MissingRanksError       ranks did not come to a barrier in time (also a RuntimeError)
└── FaultError              an aggregator reported a failure
    ├── InvalidError        this process violated the protocol
    ├── DisagreementError   ranks disagree on a key or on the job
    ├── TakenError          the rank or the job's name is taken
    ├── WorkerLostError     a worker vanished, or left while others needed it
    │   └── ExcludedError   this worker was lost to an elastic job, which goes on without it
    ├── RoundTimeoutError   a round waited too long for its slowest rank
    ├── AbortedError        a rank reported that it cannot contribute
    ├── ExhaustedError      the aggregator has no room: no memory or shards, no file descriptor, no place for a job
    ├── DeniedError         the worker may not do this
    ├── InternalError       the aggregator itself failed
    └── UnreachableError    a relay could not reach an aggregator that it forwards to, or lost it

An aggregator reports a FaultError to all ranks with the same text.
"""

from collections.abc import Iterable
from typing import ClassVar

from psum.v1 import aggregator_pb2 as pb


class PsumError(Exception):
    """Base of all exceptions that psum raises on purpose. The text explains the error to a person."""


class ConfigurationError(PsumError, ValueError):
    """The settings cannot be used. The text lists all mistakes.

    Attributes:
        mistakes: One sentence for each mistake.
    """

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("psum cannot start with these settings:\n" + "\n".join(f"  - {m}" for m in self.mistakes))


class ConnectError(PsumError):
    """An aggregator could not be reached, or did not answer in time.

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
    """The other side violated the protocol. This ends the stream and affects nothing else."""


class ClosedError(PsumError):
    """The client was closed, or the process ended, before the operation was complete."""


class ForkedError(PsumError):
    """The client belongs to the parent process of this fork, and cannot be used here."""


class OutOfStepError(PsumError):
    """Ranks hold different tensors where they should hold the same. The text, the same on every rank, names the first.

    Attributes:
        ranks: The ranks that differ from the majority, or from rank 0 if there is no majority.
    """

    def __init__(self, text: str, *, ranks: Iterable[int]) -> None:
        self.ranks = tuple(ranks)
        super().__init__(text)


class MissingRanksError(PsumError, RuntimeError):
    """Ranks did not come to a barrier in time. The text names them.

    It is a RuntimeError because that is what torch.distributed raises.

    Attributes:
        ranks: These ranks; only the first if no more were looked for.
    """

    def __init__(self, text: str, *, ranks: Iterable[int]) -> None:
        self.ranks = tuple(ranks)
        super().__init__(text)


class FaultError(PsumError):
    """An aggregator reported a failure.

    Attributes:
        key: The key's id on the wire, or None if the whole job failed.
        round: The round, or None if the failure is not about a round.
        ranks: The ranks that caused the failure.
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
        """The kind of failure as one word, such as worker_lost."""
        return pb.FaultCode.Name(self.code).removeprefix("FAULT_CODE_").lower()

    def to_message(self) -> pb.Fault:
        """Return the protocol's message for this fault."""
        return pb.Fault(code=self.code, text=str(self), id=self.key, round=self.round, ranks=self.ranks)

    def of_the_job(self) -> "FaultError":
        """Return this fault as one of the whole job, which names no key."""
        return self if self.key is None else type(self)(str(self), ranks=self.ranks)

    @staticmethod
    def from_message(message: pb.Fault) -> "FaultError":
        """Return the exception for a received fault. An unknown code gives a plain FaultError."""
        return _CLASSES.get(message.code, FaultError)(
            message.text,
            key=message.id if message.HasField("id") else None,
            round=message.round if message.HasField("round") else None,
            ranks=message.ranks,
        )


class InvalidError(FaultError):
    """This process violated the protocol. The aggregator has raised a ProtocolError for it."""

    code = pb.FAULT_CODE_INVALID


class DisagreementError(FaultError):
    """Ranks disagree on a key or on the job. The text shows both versions."""

    code = pb.FAULT_CODE_DISAGREEMENT


class TakenError(FaultError):
    """The rank or the job's name is taken."""

    code = pb.FAULT_CODE_TAKEN


class WorkerLostError(FaultError):
    """A worker vanished, or left while others needed it."""

    code = pb.FAULT_CODE_WORKER_LOST


class ExcludedError(WorkerLostError):
    """This worker was out of touch for too long, and its elastic job goes on without it.

    A new process may take part in the job again; this one may not, because the others have steps that it lacks.
    """

    code = pb.FAULT_CODE_EXCLUDED


class RoundTimeoutError(FaultError):
    """A round waited too long for its slowest rank."""

    code = pb.FAULT_CODE_TIMEOUT


class AbortedError(FaultError):
    """A rank reported that it cannot contribute."""

    code = pb.FAULT_CODE_ABORTED


class ExhaustedError(FaultError):
    """The aggregator has no room: no memory or shards for the keys, no file descriptor, or no place for another job."""

    code = pb.FAULT_CODE_EXHAUSTED


class DeniedError(FaultError):
    """The worker may not do this."""

    code = pb.FAULT_CODE_DENIED


class InternalError(FaultError):
    """The aggregator itself failed. Its log has the details."""

    code = pb.FAULT_CODE_INTERNAL


class UnreachableError(FaultError):
    """A relay could not reach an aggregator that it forwards to, or lost it. The text names the aggregator."""

    code = pb.FAULT_CODE_UNREACHABLE


_CLASSES: dict[int, type[FaultError]] = {
    cls.code: cls
    for cls in (
        InvalidError,
        DisagreementError,
        TakenError,
        WorkerLostError,
        ExcludedError,
        RoundTimeoutError,
        AbortedError,
        ExhaustedError,
        DeniedError,
        InternalError,
        UnreachableError,
    )
}
