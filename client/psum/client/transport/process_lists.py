"""Asks each listed aggregator of which processes it consists, before this worker joins.

A worker with a relay asks only the relay, which asks the aggregators: they may be out of the worker's reach.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import grpc.aio

from psum.client.core.process_lists import Processes
from psum.client.settings import Settings
from psum.client.transport.connect_problem import ConnectProblem
from psum.client.transport.credentials import Credentials
from psum.client.transport.explanation import explain
from psum.client.transport.opening import backoff
from psum.client.transport.process_question import ENDING, ask, is_unanswered, processes_in
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ConnectError, ProtocolError, PsumError

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_QUESTION: Final = pb.GetStatusRequest(without_jobs=True)


class _UnansweredError(Exception):
    """Nothing can be said yet, for the reason in the text.

    Args:
        cause: The reason.
        address: The aggregator that it is about.
    """

    def __init__(self, cause: str, address: str) -> None:
        super().__init__(cause)
        self.address = address


async def ask_for_processes(settings: Settings) -> Sequence[Processes]:
    """What each listed aggregator says of its processes, in the order of the list; empty for one that is one process.

    Asks all at the same time, and again while one is not up. An aggregator that answers in another way, such as an old
    one or one that does not trust this worker, counts as one process: joining reports what is wrong.

    Raises:
        ConnectError: One was not reached within connect_timeout seconds, or this process may open no more files.
        ConfigurationError: A file for TLS or the token file cannot be used.
    """
    credentials = Credentials.of(settings)
    credentials.check()
    try:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(_ask(address, settings, credentials)) for address in settings.aggregators]
    except* PsumError as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
    return [task.result() for task in asked]


async def ask_relay_for_processes(
    settings: Settings, relay: str, hello: pb.Hello
) -> tuple[Sequence[Processes], frozenset[int]]:
    """What `ask_for_processes` returns, with one connection, to the relay. Waits as long, and repeats what failed.

    Also the ranks of the job, if it is elastic and goes on, whose processes are lost or have left.

    A relay that answers in another way does not count either.

    Args:
        settings: The worker's settings.
        relay: The relay's address.
        hello: What tells the relay who asks, and where it forwards to. The aggregators are added.

    Raises:
        ConnectError: The relay or an aggregator was not reached within connect_timeout seconds, some side does not
            trust another, or this process may open no more files.
        ConfigurationError: A file for TLS or the token file cannot be used.
    """
    credentials = Credentials.of(settings)
    credentials.check()
    question = _RelayQuestion(settings, relay, hello, credentials)
    answered = await _persevere(question.ask, relay, settings, credentials)
    return question.found if answered else [()] * len(settings.aggregators), frozenset(question.vacant)


class _RelayQuestion:
    """Asks a relay about the aggregators that have not answered yet.

    Attributes:
        lacking: The positions of these aggregators in the list.
        found: What all have said.
        vacant: The ranks without a process, as some have said.
    """

    def __init__(self, settings: Settings, relay: str, hello: pb.Hello, credentials: Credentials) -> None:
        self.lacking = list(range(len(settings.aggregators)))
        self.found: list[Processes] = [()] * len(settings.aggregators)
        self.vacant: set[int] = set()
        self._settings = settings
        self._relay = relay
        self._hello = hello
        self._credentials = credentials

    async def ask(self, patience: float) -> bool:
        """Asks once. Returns whether the relay knows of the question.

        Raises:
            _UnansweredError: An aggregator has not answered.
            ConnectError: The relay cannot talk to an aggregator.
        """
        addresses = [self._settings.aggregators[index] for index in self.lacking]
        self._hello.aggregators[:] = addresses
        question = pb.GetStatusRequest(without_jobs=True, hello=self._hello)
        status = await ask(self._relay, self._credentials, question, patience)
        if status.draining:
            raise _UnansweredError(ENDING, self._relay)
        if len(status.inquiries) != len(addresses):
            return False
        problems: list[pb.Inquiry] = []
        lacking: list[int] = []
        for index, inquiry in zip(self.lacking, status.inquiries, strict=True):
            if inquiry.problem:
                problems.append(inquiry)
                lacking.append(index)
            else:
                self.found[index] = processes_in(inquiry)
                self.vacant.update(inquiry.vacant_ranks)
        self.lacking = lacking
        for inquiry in problems:
            if inquiry.final:
                raise ConnectError(
                    f"rank {self._settings.rank} cannot join the job at its relay {self._relay}: {inquiry.problem}",
                    address=inquiry.address,
                )
        for inquiry in problems:
            raise _UnansweredError(f"relay {self._relay} asked it, but {inquiry.problem}", inquiry.address)
        return True


async def _ask(address: str, settings: Settings, credentials: Credentials) -> Processes:
    async def once(patience: float) -> Processes:
        status = await ask(address, credentials, _QUESTION)
        if status.draining:
            # The next process may have another list.
            raise _UnansweredError(ENDING, address)
        return processes_in(status)

    return await _persevere(once, address, settings, credentials) or ()


async def _persevere(
    once: Callable[[float], Awaitable[_T]], address: str, settings: Settings, credentials: Credentials
) -> _T | None:
    """Asks an aggregator until it answers; returns None if it answers in another way.

    Args:
        once: Asks once, given the seconds that are left.
        address: The aggregator's address.
        settings: The worker's settings.
        credentials: What is shown to the aggregator, and asked of it.
    """
    begun = time.monotonic()
    problem = ConnectProblem(begun)
    patience = settings.connect_timeout
    about = address
    try:
        async with asyncio.timeout(patience):
            for pause in backoff():
                try:
                    return await once(begun + patience - time.monotonic())
                except _UnansweredError as error:
                    about = error.address
                    problem.failed(str(error))
                except ProtocolError:
                    # It has answered. What is wrong with it is found when this worker joins.
                    return None
                except grpc.aio.AioRpcError as error:
                    if not is_unanswered(error):
                        return None
                    about = address
                    await explain(
                        error,
                        problem,
                        final=True,
                        title=f"rank {settings.rank}",
                        address=address,
                        credentials=credentials,
                    )
                if problem.should_log(time.monotonic()):
                    _log.warning(
                        "rank %d waits for aggregator %s, for up to %g s (PSUM_CONNECT_TIMEOUT): %s",
                        settings.rank,
                        about,
                        patience,
                        problem.cause,
                    )
                await asyncio.sleep(pause)
    except TimeoutError:
        pass
    raise ConnectError(
        f"rank {settings.rank} could not join the job at aggregator {about} within {patience:g} s"
        f" (PSUM_CONNECT_TIMEOUT): {problem.cause or 'nothing was heard from it'}. Is it running, and is the address"
        " right?",
        address=about,
    )
