"""What a worker knows of losses and joins in an elastic job, its part in them, and what it passes on of them.

It admits others as a member, or is the process that joins.
"""

from collections.abc import Callable, Iterable, Sequence

from psum.client.core.admissions import Admissions
from psum.client.core.gossip import Gossip
from psum.client.core.key import Key
from psum.client.core.key_registry import KeyRegistry
from psum.client.core.known_losses import KnownLosses
from psum.client.core.reach import Reach
from psum.client.core.roll_call import Process
from psum.client.core.running_operations import RunningOperations
from psum.client.core.solo import Solo
from psum.v1 import aggregator_pb2 as pb


class Joins:
    """Connects admissions and losses with the rounds of keys. Used from the client's thread only.

    Args:
        title: Which worker this is, for people.
        aggregators: How many aggregators there are.
        num_workers: The nominal size of the job.
        operations: The rounds of the keys.
        registry: The keys.
        clock: The time now, in seconds.

    Attributes:
        generation: How many processes of this rank were members before this one.
        admissions: Who waits, and who was admitted.
        changed: Whether losses, candidates or admissions have changed since the client has looked.
        gossip: Makes the messages with news, which go to an aggregator before anything else.
    """

    def __init__(
        self,
        title: str,
        aggregators: int,
        num_workers: int,
        operations: RunningOperations,
        registry: KeyRegistry,
        clock: Callable[[], float],
    ) -> None:
        self.generation = 0
        self.admissions = Admissions(aggregators, num_workers)
        self.changed = False
        self._title = title
        self._aggregators = range(aggregators)
        self._losses = KnownLosses(aggregators)
        self._reach = Reach(aggregators)
        self.gossip = Gossip(self._losses, self.admissions, self._reach, clock)
        self._operations = operations
        self._registry = registry
        self._clock = clock
        self._rounds: dict[int, int] = {}
        """The rounds with which this process begins, by the key's id, if it has joined."""

    @property
    def lacks_state(self) -> bool:
        """Whether this process joins a running job and has not got its state, although it may have been let in."""
        return self._operations.solo is not None

    def is_lost(self, rank: int) -> bool:
        """Whether the present process of a rank is lost."""
        return self._losses.generations.get(rank, -1) >= self.admissions.generation(rank)

    def note_losses(self, losses: Iterable[pb.Loss], now: float, told_by: int | None = None) -> None:
        """Notes losses, of which all other aggregators are told. See KnownLosses.note."""
        for loss in self._losses.note(losses, now, told_by):
            self.changed = True
            self._mark(now, f"rank {loss.rank} is lost", loss.text)

    def losses(self) -> list[pb.Loss]:
        """The ranks that are lost, for the next hello to an aggregator."""
        return self._losses.all(self._clock(), self.admissions.admitted)

    def note_candidates(self, aggregator: int, candidates: Sequence[pb.Candidate]) -> None:
        """Notes who waits at an aggregator to join: all of them."""
        self.admissions.note(aggregator, candidates)
        self.changed = True

    def disconnected(self, aggregator: int) -> None:
        """Notes that the stream to an aggregator has broken. The others are told."""
        self._reach.lost(aggregator)

    def reconnected(self, aggregator: int) -> None:
        """Notes that there is another stream to an aggregator."""
        self._reach.found(aggregator)
        self.admissions.forget(aggregator)

    def unfinished(self) -> list[Key]:
        """The keys that are not at rest: an operation of theirs was reserved and is not complete."""
        rounds = self._operations.rounds
        return self._registry.unfinished(lambda key: rounds[key.id].round if key.id in rounds else key.start)

    def admit(self, process: Process) -> int:
        """Admits a process: all aggregators are told before anything else. All keys must be at rest.

        Returns:
            The newcomer's generation.
        """
        self._mark(self._clock(), f"rank {process.rank} joins")
        rounds: dict[int, dict[int, int]] = {aggregator: {} for aggregator in self._aggregators}
        for each in self._operations.rounds.values():
            key = each.key
            if key.ranks or (key.failure is not None and not each.declared):
                continue
            # A member that has not heard of a failure may still wait, and admits the newcomer only after that. So an
            # aggregator that is started again, and has not heard of it either, must not wait for the newcomer then.
            first = each.round if key.failure is None else max(each.round + 1, key.reserved)
            for connection in key.connections:
                rounds[connection][key.id] = first
        for id, round in self._rounds.items():
            # Keys that this process, which has joined too, has not used yet. It does not know where they are.
            if id not in self._operations.rounds:
                for keys in rounds.values():
                    keys[id] = round
        return self.admissions.admit(process, rounds)

    def wait(self) -> None:
        """Begins to wait for the admission of this process. Its operations are complete without the others."""
        self._operations.solo = Solo(self._title)

    def ask(self) -> None:
        """Forgets what aggregators have said of the admission of an earlier process, if not all have let it in."""
        self.generation = 0
        self._rounds.clear()

    def welcomed(self, welcome: pb.Welcome) -> None:
        """Takes what an aggregator says of losses, and of this process's admission."""
        self.note_losses(welcome.losses, self._clock())
        if welcome.HasField("admission"):
            admission = welcome.admission
            self.generation = admission.generation
            self._rounds.update(zip(admission.ids, admission.rounds, strict=True))
            self.admissions.learn([admission])
            if self.lacks_state:
                # A member hears of admissions at boundaries. It would count one twice of which others speak before.
                self.admissions.learn(welcome.admissions)

    def begin(self) -> None:
        """Notes that all aggregators have welcomed this process, which has no state yet: it knows the rounds now."""
        self._registry.start_at(self._rounds, self._operations.rounds)

    def adopt(self, admitted: Iterable[pb.Admission]) -> None:
        """Notes that this process has the state of the others. From now on it takes part in all operations.

        Args:
            admitted: The admissions that the others know.
        """
        self.admissions.learn(admitted)
        self._registry.start_at(self._rounds, self._operations.rounds)
        self._operations.solo = None

    def complete(self) -> None:
        """Notes that a join is over. What was used for it alone is forgotten."""
        self.admissions.complete()
        self._operations.forget_ranked_keys()

    def _mark(self, now: float, name: str, text: str = "") -> None:
        if (recorder := self._operations.recorder) is not None:
            recorder.mark(now, name, text)
