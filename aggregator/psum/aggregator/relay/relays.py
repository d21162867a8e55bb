"""All groups that one aggregator process relays for."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from psum.aggregator.core.actions import Action, ConnectUplinks, UplinkAction
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.aggregator.relay.core.drain_plan import Round, plan, still_open
from psum.aggregator.relay.core.elastic_host_job import ElasticHostJob
from psum.aggregator.relay.core.host_job import HostJob
from psum.aggregator.relay.core.introduction import Identity
from psum.aggregator.relay.inquiries import Inquiries
from psum.aggregator.relay.uplinks import Uplinks, UplinkTerms
from psum.aggregator.settings import Settings
from psum.client.observe import process_name
from psum.client.transport.credentials import Credentials, SettingNames
from psum.planes import PLANES, Plane, offered_by
from psum.runtime import TlsFiles
from psum.v1 import aggregator_pb2 as pb

_log = logging.getLogger(__name__)

#: The variables of an aggregator's files for TLS as it uses them where it forwards to.
_NAMES: Final = SettingNames(
    ca="PSUM_RELAY_TLS_CA",
    cert="PSUM_AGGREGATOR_TLS_CERT",
    key="PSUM_AGGREGATOR_TLS_KEY",
    server_name="PSUM_RELAY_TLS_SERVER_NAME",
)

#: How long a process waits to join at a relay, until it does so without others of its group. If the relay was started
#: again, they come back sooner.
FOUND_SECONDS: Final = 2.0

#: How long connections of groups that have ended may take to end before this process does.
_CLOSE_SECONDS: Final = 1.0


class Relays:
    """The jobs of groups, and the connections of each to the aggregators that it forwards to.

    Args:
        settings: The aggregator's settings.
        incarnation: The number that identifies this process.
        limits: The limits of jobs.
        budget: The memory that these jobs share with those of the fleet.
        released: Called with each job that has ended.
        lent: Tells whether a payload lies in memory that its worker takes back with the credit; see Job.
        clock: The time in seconds that jobs are given.
        perform: Carries out actions of a job.
        descriptors: Takes this many file descriptors, and returns whether there are as many; negative: gives them back.
    """

    def __init__(
        self,
        settings: Settings,
        incarnation: int,
        *,
        limits: Limits,
        budget: Budget,
        released: Callable[[Job], None],
        lent: Callable[[memoryview], bool],
        clock: Callable[[], float],
        perform: Callable[[Job, Sequence[Action]], None],
        descriptors: Callable[[int], bool],
    ) -> None:
        self._settings = settings
        self._identity = Identity(incarnation, process_name.name())
        self._clock = clock
        self._perform = perform
        self._released = released
        self._descriptors = descriptors
        self._uplinks: dict[int, Uplinks] = {}
        """By the job's id()."""
        self._taken: dict[int, int] = {}
        """How many file descriptors the uplinks of each job have, by the job's id()."""
        self._tokens: WeakKeyDictionary[Job, str] = WeakKeyDictionary()
        self._ending: set[asyncio.Task[None]] = set()
        self._inquiries = Inquiries(
            self._identity,
            self._credentials(),
            insecure=settings.insecure,
            connect_timeout=settings.connect_timeout,
            descriptors=descriptors,
        )
        self.registry = Registry(limits, self._release, lent, budget=budget, make=self._make, found_after=FOUND_SECONDS)
        """The jobs."""

    def bring_token(self, job: Job, token: bytes) -> None:
        """Notes the token that a worker of a group has brought."""
        if token:
            # The latest one: workers read theirs again for each stream.
            self._tokens[job] = _text(token)

    async def inquire(self, hello: pb.Hello, token: bytes, patience: float | None) -> Sequence[pb.Inquiry]:
        """Asks aggregators for their processes, for a worker that is about to join a group; see Inquiries."""
        return await self._inquiries.ask(hello, _text(token), patience)

    def end_inquiries(self) -> None:
        """Answers all who wait for other aggregators' answers: this process is about to end."""
        self._inquiries.end()

    def tell(self, job: Job, action: UplinkAction) -> None:
        """Carries out an action that concerns the uplinks of a job."""
        assert isinstance(job, HostJob)
        uplinks = self._uplinks.get(id(job))
        if uplinks is None:
            if not isinstance(action, ConnectUplinks):
                # The job was released meanwhile.
                return
            uplinks = self._uplinks[id(job)] = Uplinks(
                job,
                self._terms(self._take_descriptors(job)),
                self._token_of(job),
                clock=self._clock,
                perform=self._perform,
            )
        uplinks.tell(action)

    def _token_of(self, job: HostJob) -> Callable[[], str] | None:
        """What returns the token for a job's uplinks; None if it is in a file of this relay's."""
        return None if self._settings.relay_token_file else lambda: self._tokens.get(job, "")

    def of(self, job: Job) -> Uplinks | None:
        """The uplinks of a job; None before all ranks of its group have joined."""
        return self._uplinks.get(id(job))

    def status(self, job: Job) -> list[pb.UplinkStatus]:
        """The state of each way to an owner, for people. There are none open before the group is complete."""
        if (uplinks := self.of(job)) is not None and uplinks.connections:
            return uplinks.status()
        assert isinstance(job, HostJob)
        return [pb.UplinkStatus(address=address) for address in job.uplink.addresses]

    def still_open(self, fleet: Registry) -> dict[int, set[Round]]:
        """The rounds of each group that are open and can still be finished, by its job's id().

        Args:
            fleet: The jobs whose shards this process owns.
        """
        self._note_lost()
        rounds = {}
        for name, job in self.registry.jobs.items():
            assert isinstance(job, HostJob)
            rounds[id(job)] = still_open(job, self._own_uplinks(job), fleet.jobs.get(name))
        return rounds

    def plan_drain(self, fleet: Registry, rounds: dict[int, set[Round]]) -> None:
        """Adds the rounds that groups finish before this process ends.

        Args:
            fleet: The jobs whose shards this process owns.
            rounds: The rounds that each job finishes, by its id(). Those of the fleet's jobs may change.
        """
        self._note_lost()
        for name, job in self.registry.jobs.items():
            assert isinstance(job, HostJob)
            job.drain()
            owned = fleet.jobs.get(name)
            fleet_rounds = rounds[id(owned)] if owned is not None else set()
            rounds[id(job)] = plan(job, self._own_uplinks(job), owned, fleet_rounds)

    async def close(self) -> None:
        """Ends all connections: those of jobs in progress at once, to be opened again by the next process."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await asyncio.gather(*self._ending, return_exceptions=True)
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, *(each.close() for each in self._uplinks.values()), return_exceptions=True)

    def _note_lost(self) -> None:
        """Tells each job which aggregators it is not connected to, before it is asked for open rounds."""
        for uplinks in self._uplinks.values():
            uplinks.note_lost()

    def _own_uplinks(self, job: HostJob) -> set[int]:
        """The uplinks of a job that lead to this process."""
        uplinks = self._uplinks.get(id(job))
        return set() if uplinks is None else uplinks.leading_to(self._identity.incarnation)

    def _make(self, hello: pb.Hello, limits: Limits, **job: Any) -> HostJob:
        kind = ElasticHostJob if hello.HasField("elastic") else HostJob
        return kind(
            hello, limits, identity=self._identity, credit_bytes=self._settings.credit_bytes, clock=self._clock, **job
        )

    def _take_descriptors(self, job: HostJob) -> Sequence[Plane]:
        """Takes the file descriptors of a job's uplinks; returns the planes that they are enough for, none if none."""
        wanted, count = self._offered(), len(job.uplink.addresses)
        for planes in (wanted, PLANES[-1:]):
            needed = count * max(plane.descriptors for plane in planes)
            if self._descriptors(needed):
                self._taken[id(job)] = needed
                if planes is not wanted:
                    _log.warning(
                        "job %s: it is forwarded on plane %s, which is slower: other planes would need more file"
                        " descriptors than this process may still open",
                        job.name,
                        planes[0].name,
                    )
                return planes
        return ()

    def _offered(self) -> Sequence[Plane]:
        # Workers may have the same environment, and mean the memory that they share with this process.
        return offered_by("auto" if self._settings.plane == "shm" else self._settings.plane)

    def _credentials(self) -> Credentials:
        """What is shown to other aggregators, and asked of them; without a token that workers bring."""
        settings = self._settings
        ca = settings.relay_tls_ca or settings.tls_client_ca
        return Credentials(
            tls=TlsFiles(ca=ca, cert=settings.tls_cert, key=settings.tls_key, ca_setting="relay_tls_ca"),
            server_name=settings.relay_tls_server_name,
            names=_NAMES,
            token_file=settings.relay_token_file,
        )

    def _terms(self, planes: Sequence[Plane]) -> UplinkTerms:
        settings = self._settings
        return UplinkTerms(
            credentials=self._credentials(),
            insecure=settings.insecure,
            planes=planes,
            plane=settings.plane,
            shm_directory=settings.shm_directory,
            shm_limit=settings.shm_limit,
            credit_bytes=settings.credit_bytes,
            keepalive=settings.keepalive,
            connect_timeout=settings.connect_timeout,
            reconnect_timeout=settings.reconnect_timeout,
        )

    def _release(self, job: Job) -> None:
        """Lets go of a job that has ended. Its connections may still have to tell owners why."""
        uplinks = self._uplinks.pop(id(job), None)
        if uplinks is not None:
            task = asyncio.get_running_loop().create_task(uplinks.finish())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            # Not before: the connections are still open.
            taken = self._taken.pop(id(job), 0)
            task.add_done_callback(lambda _: self._descriptors(-taken))
        self._released(job)


def _text(token: bytes) -> str:
    """A worker's token as it is sent on."""
    return token.decode("ascii", "ignore")
