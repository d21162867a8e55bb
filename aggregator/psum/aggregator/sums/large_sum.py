"""The sum of a large shard, in all the forms in which workers are sent it."""

from psum.aggregator.sums.results import Results, result_message
from psum.planes import Location
from psum.wire import ShardRound


class LargeSum:
    """One sum that was made once. Each form of it is made once too, when the first worker needs it.

    Args:
        row: Which sum it is; its columns for the payload's location are empty.
        offset: Its offset in the job's shared memory, None if it lies in a message.
        memory: The sum.
        message: The message that the sum lies at the end of, None if it lies in shared memory or by itself.
    """

    __slots__ = ("_forms", "memory", "offset", "row")

    def __init__(self, row: ShardRound, offset: int | None, memory: memoryview, message: bytes | None) -> None:
        # The view that `allocate` gives for writing must not outlive the message; this one keeps it alive.
        self.memory = memory if message is None else memoryview(message)[-len(memory) :]
        self.offset = offset
        self.row = row
        self._forms: dict[Location, Results] = {}
        if message is not None:
            self._forms[Location(len(memory))] = Results((row,), priority=row.priority, message=message)

    def at(self, location: Location) -> Results:
        """The form for workers that find the sum at this location."""
        form = self._forms.get(location)
        if form is None:
            form = self._forms[location] = self._form(location)
        return form

    def _form(self, location: Location) -> Results:
        length, offset, outside_size, _, follows = location
        row = self.row._replace(length=length, offset=offset, outside_size=outside_size)
        if length:
            message = result_message((row,), (self.memory,))
            return Results((self.row,), priority=row.priority, message=message)
        return Results((row,), following=(self.memory,) if follows else (), priority=row.priority)
