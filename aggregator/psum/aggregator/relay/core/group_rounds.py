"""The rounds of a relay's group in an elastic job."""

from psum.aggregator.core.actions import Action
from psum.aggregator.core.elastic_rounds import ElasticRounds
from psum.aggregator.core.job_rounds import JobRounds
from psum.aggregator.core.key import Key
from psum.aggregator.core.round import ShardRounds


class GroupRounds(ElasticRounds):
    """See ElasticRounds. A round of the group ends with its own ranks; the result counts those that its owner says.

    If the group has lost the root of a broadcast, it forwards no value. The owner sees to another one.
    """

    def __init__(self, *arguments: object, **others: object) -> None:
        super().__init__(*arguments, **others)
        self._answered: dict[tuple[int, int], int] = {}
        """How many ranks a result counts that has come and is being written, by (key's id, shard)."""

    def answered(self, key: Key, index: int, contributors: int) -> None:
        """Notes how many ranks the result of a shard's current round counts; 0: as many as the job began with."""
        self._answered[key.id, index] = contributors

    def summed(self, key: Key, index: int, result: object) -> list[Action]:
        """See JobRounds. The result is the owner's."""
        which = key.id, index
        contributors = self._answered.pop(which, 0)
        actions = JobRounds.summed(self, key, index, result)
        if not actions:
            return []
        if self._admission is not None:
            self._set_rosters(key)
        return self._counted(actions, which, contributors)

    def _sender(self, key: Key, shard: ShardRounds[object]) -> int:
        """See JobRounds. What the root has sent is forwarded by now. It has its value for sure."""
        return self._root_worker(key)

    def _replace_root(self, key: Key, index: int) -> list[Action]:
        return []
