"""Which admissions of a relay's group the owners of an elastic job are told of, and when."""

from psum.aggregator.core.admissions import Admission
from psum.aggregator.relay.core.elastic_uplink import ElasticUplink
from psum.aggregator.relay.core.group_joins import GroupJoins
from psum.aggregator.relay.core.group_membership import GroupMembership


class PassedAdmissions:
    """The admissions that the owners were told of. They are told of each when the whole group has said it.

    Args:
        members: The members of the group.
        joins: The processes that wait here to join.
        uplink: What is sent to the owners.
    """

    def __init__(self, members: GroupMembership, joins: GroupJoins, uplink: ElasticUplink) -> None:
        self._members = members
        self._joins = joins
        self._uplink = uplink
        self._told: dict[int, int] = {}
        """The generation of the last admission of each rank that the owners were told of."""

    def note(self, admission: Admission) -> None:
        """The owners know of an admission: they have decided it."""
        self._told[admission.rank] = admission.generation

    def tell(self) -> bool:
        """Tells the owners whom the whole group has admitted. Returns whether that is new."""
        new = [each for each in self._members.admissions.values() if not self._was_told(each) and self._is_said(each)]
        for admission in new:
            self.note(admission)
            self._uplink.admit(admission)
        return bool(new)

    def known(self) -> list[Admission]:
        """The admissions that an owner may be told of in a hello. A newcomer has not said what came before it."""
        return [each for each in self._members.admissions.values() if self._was_told(each) or self._is_said(each)]

    def _was_told(self, admission: Admission) -> bool:
        return self._told.get(admission.rank, -1) >= admission.generation

    def _is_said(self, admission: Admission) -> bool:
        return self._members.said_by_all(admission, {each.hello.rank for each in self._joins.candidates})
