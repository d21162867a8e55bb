"""Asks aggregators, for workers that cannot reach them, of which processes they consist.

Nothing is remembered: an aggregator that is started again may have another number of processes, and whoever joins then
must hear of it, with a relay or without.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Final

import grpc.aio

from psum.aggregator.core.hellos import unusable_addresses
from psum.aggregator.relay.core.introduction import Identity, question, uplink_addresses
from psum.aggregator.relay.exposure import exposure
from psum.client.transport.connect_problem import ConnectProblem
from psum.client.transport.credentials import Credentials
from psum.client.transport.explanation import explain
from psum.client.transport.process_question import ENDING, ask, is_unanswered
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ConfigurationError, ConnectError, InvalidError, ProtocolError

#: The file descriptors that one question takes.
_DESCRIPTORS: Final = 2

#: The part of the asker's time that this process takes, so that its answer arrives in time.
_PART_OF_PATIENCE: Final = 0.9


@dataclasses.dataclass(slots=True)
class _Attempt:
    """A question that is under way, for everybody who asks the same meanwhile.

    Attributes:
        task: Asks.
        askers: How many wait for it.
    """

    task: "asyncio.Task[Sequence[pb.Inquiry]]"
    askers: int = 0


class Inquiries:
    """Asks each aggregator once. Workers ask again for those that did not answer.

    Args:
        identity: This process.
        credentials: What is shown to aggregators, and asked of them; without a token.
        insecure: Whether a token may travel unencrypted to other machines.
        connect_timeout: The longest time that one question may take, in seconds.
        descriptors: Takes this many file descriptors, and returns whether there are as many; negative: gives them back.
    """

    def __init__(
        self,
        identity: Identity,
        credentials: Credentials,
        *,
        insecure: bool,
        connect_timeout: float,
        descriptors: Callable[[int], bool],
    ) -> None:
        self._identity = identity
        self._credentials = credentials
        self._insecure = insecure
        self._connect_timeout = connect_timeout
        self._descriptors = descriptors
        self._attempts: dict[tuple[str, str, bytes], _Attempt] = {}
        self._ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def ask(self, hello: pb.Hello, token: str, patience: float | None) -> Sequence[pb.Inquiry]:
        """What each aggregator of a hello says, in their order.

        Args:
            hello: Who asks for which aggregators. It was admitted as a worker of a group.
            token: Its token; empty without one.
            patience: How long it waits for the answer, in seconds; None if it does not say.

        Raises:
            DeniedError: The token would be exposed.
            InvalidError: The hello has something else than addresses, or too many.
        """
        if (problem := unusable_addresses(hello)) is not None:
            raise InvalidError(f"a relay is asked about {problem}")
        addresses, _ = uplink_addresses(hello)
        # As on the connections later: see Relays.
        own = bool(self._credentials.token_file)
        credentials = dataclasses.replace(self._credentials, token=None if own else lambda: token)
        what = f"a relay may not pass a question of job {hello.job!r} on to"
        if (denied := exposure(what, addresses, credentials, insecure=self._insecure)) is not None:
            raise denied
        limit = self._connect_timeout
        if patience is not None:
            limit = min(limit, _PART_OF_PATIENCE * patience)
        if hello.next_relays:
            further = pb.GetStatusRequest(without_jobs=True, hello=question(self._identity, hello))
            return await self._shared(addresses[0], credentials, token, further, limit)
        asked = pb.GetStatusRequest(without_jobs=True, job=hello.job)
        answers = await asyncio.gather(*(self._shared(each, credentials, token, asked, limit) for each in addresses))
        return [inquiry for answer in answers for inquiry in answer]

    def end(self) -> None:
        """Answers all who wait at once: this process is about to end."""
        if not self._ending.done():
            self._ending.set_result(None)

    async def _shared(
        self, address: str, credentials: Credentials, token: str, asked: pb.GetStatusRequest, limit: float
    ) -> Sequence[pb.Inquiry]:
        """Asks one aggregator, or joins those who ask it the same at this moment, as the workers of a host do."""
        key = (address, token, asked.SerializeToString(deterministic=True))
        attempt = self._attempts.get(key)
        if attempt is None:
            task = asyncio.create_task(self._attempt(address, credentials, asked, limit))
            attempt = self._attempts[key] = _Attempt(task)
        attempt.askers += 1
        try:
            await asyncio.wait((attempt.task, self._ending), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if attempt.task.done():
                return attempt.task.result()
            return _problem(asked, address, "it has not answered")
        finally:
            attempt.askers -= 1
            if not attempt.askers:
                # Who asks from now on asks anew.
                self._attempts.pop(key, None)
                attempt.task.cancel()

    async def _attempt(
        self, address: str, credentials: Credentials, asked: pb.GetStatusRequest, limit: float
    ) -> Sequence[pb.Inquiry]:
        if not self._descriptors(_DESCRIPTORS):
            return _problem(asked, address, "the relay has no file descriptor left for the question")
        try:
            return await self._ask(address, credentials, asked, limit)
        finally:
            self._descriptors(-_DESCRIPTORS)

    async def _ask(
        self, address: str, credentials: Credentials, asked: pb.GetStatusRequest, limit: float
    ) -> Sequence[pb.Inquiry]:
        try:
            status = await ask(address, credentials, asked, limit)
        except ProtocolError:
            return _one_process(asked)
        except grpc.aio.AioRpcError as error:
            if not is_unanswered(error):
                return _one_process(asked)
            problem = ConnectProblem(time.monotonic())
            title = f"the relay on {self._identity.name}"
            try:
                await explain(error, problem, final=True, title=title, address=address, credentials=credentials)
            except ConnectError as distrust:
                return _problem(asked, address, str(distrust), final=True)
            return _problem(asked, address, problem.cause)
        except ConfigurationError as error:
            return _problem(asked, address, f"the relay on {self._identity.name} cannot connect: {error}", final=True)
        if status.draining:
            return _problem(asked, address, ENDING)
        if not asked.HasField("hello"):
            return [pb.Inquiry(processes=status.processes, vacant_ranks=status.vacant_ranks)]
        return status.inquiries if len(status.inquiries) == _count(asked) else _one_process(asked)


def _count(asked: pb.GetStatusRequest) -> int:
    """How many aggregators a question is about."""
    return len(asked.hello.aggregators) if asked.HasField("hello") else 1


def _one_process(asked: pb.GetStatusRequest) -> Sequence[pb.Inquiry]:
    """The answer about what does not speak as an aggregator of several processes does.

    Whoever joins finds out what is wrong with it.
    """
    return [pb.Inquiry()] * _count(asked)


def _problem(asked: pb.GetStatusRequest, address: str, text: str, *, final: bool = False) -> Sequence[pb.Inquiry]:
    return [pb.Inquiry(problem=text, address=address, final=final)] * _count(asked)
