"""Every plane in the table keeps what psum.planes.plane promises, from offer to close."""

from collections.abc import Iterator

import click
import numpy as np
import pytest

import psum.client
from psum.cli.launch.command import launch
from psum.planes import (
    DEFAULT_DIRECTORY,
    DEFAULT_LIMIT,
    PLANES,
    AggregatorPlane,
    Arena,
    DataConnection,
    GrowingSegment,
    Plane,
    PlaneError,
    WorkerPlane,
    WorkerTerms,
    is_lent,
    offered_by,
)
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import ProtocolError
from tests.shared_memory import emptied_directory

KINDS = pytest.mark.parametrize("plane", PLANES, ids=lambda plane: plane.name)

SIZE = 100_000


def fail(error: PlaneError) -> None:
    """Nothing may be lacking in these tests."""
    raise error


class Host:
    """What an aggregator gives to planes."""

    shm_directory = DEFAULT_DIRECTORY
    data_port = 5

    def __init__(self) -> None:
        self.arena: Arena | None = None

    @property
    def has_memory(self) -> bool:
        return self.arena is not None

    def memory(self) -> Arena:
        self.arena = self.arena or Arena(self.shm_directory, fail)
        return self.arena

    def without(self, what: str, error: PlaneError) -> None:
        raise error


class Ends:
    """Both ends of one plane that was offered and accepted."""

    def __init__(
        self, plane: Plane, *, staging: GrowingSegment | None = None, directory: str = DEFAULT_DIRECTORY
    ) -> None:
        self.host = Host()
        self.host.shm_directory = directory
        terms = WorkerTerms(directory, DEFAULT_LIMIT, 4 * SIZE, staging, fail)
        offer = plane.offer("localhost:1", terms)
        assert offer is not None
        hello, welcome = pb.Hello(planes=[plane.kind]), pb.Welcome(plane=plane.kind)
        offer.describe(hello)
        needed = plane.needs(hello, self.host)
        accepted = plane.accept(hello, welcome, self.host)
        assert accepted is not None
        assert accepted.descriptors <= needed
        self.aggregator: AggregatorPlane = accepted
        self.worker: WorkerPlane = offer.accepted(welcome)

    def close(self) -> None:
        """Closes everything."""
        self.worker.close()
        self.aggregator.close()
        if self.host.arena is not None:
            self.host.arena.close()


@pytest.fixture
def ends(plane: Plane) -> Iterator[Ends]:
    """Both ends of the plane."""
    with emptied_directory() as directory:
        made = Ends(plane, directory=str(directory))
        yield made
        made.close()


def value(seed: int) -> memoryview:
    """Some bytes."""
    return memoryview(np.random.default_rng(seed).bytes(SIZE))


@KINDS
def test_contributions_arrive_as_they_were_put(ends: Ends) -> None:
    """In the message, after the message, or in shared memory, wherever the location says; memory is used again."""
    for seed in range(20):
        payloads: list[memoryview] = []
        following: list[memoryview] = []
        length, offset, outside_size, held, follows = ends.worker.put(value(seed), None, payloads, following)
        assert length + outside_size == SIZE
        assert [len(payloads), len(following)] == [length > 0, follows]
        got = payloads[0] if length else following[0] if follows else None
        if got is None:
            got = ends.aggregator.get(ShardRound(1, offset=offset, outside_size=outside_size))
        assert got == value(seed)
        assert is_lent(got) == held
        if held:
            ends.worker.free(offset, outside_size)


@KINDS
def test_sums_arrive_as_they_were_placed(ends: Ends) -> None:
    """The worker gets the sum at the location that the aggregator tells it."""
    block = None if ends.host.arena is None else ends.host.arena.block(1, 0, SIZE)
    if block is not None:
        block.view[:] = value(1)
    ends.aggregator.connected(DataConnection(1, keepalive=5))
    length, offset, outside_size, _, follows = ends.aggregator.locate(SIZE, None if block is None else block.offset)
    assert length + outside_size == SIZE
    assert follows == ends.worker.payloads_follow
    if outside_size:
        following = iter([value(1)] if follows else [])
        assert ends.worker.get(ShardRound(1, offset=offset, outside_size=outside_size), following) == value(1)


@KINDS
def test_a_sum_without_a_place_is_in_its_message(ends: Ends) -> None:
    """As when there is no memory for it, or no data connection yet."""
    assert ends.aggregator.locate(SIZE, None).length == SIZE


@KINDS
async def test_what_is_nowhere_is_refused(ends: Ends) -> None:
    """A row that points outside of the memory agreed on, or to a payload that does not follow, is a ProtocolError."""
    row = ShardRound(1, offset=1 << 40, outside_size=SIZE)
    with pytest.raises(ProtocolError):
        ends.worker.get(row, iter(()))

    async def receive() -> memoryview:
        got = ends.aggregator.get(row)
        return got if got is not None else await ends.aggregator.receive(row, None)

    with pytest.raises(ProtocolError):
        await receive()


def test_staged_contributions_are_not_copied() -> None:
    """The aggregator reads them from the staging memory, where they stay."""
    staging = GrowingSegment(DEFAULT_DIRECTORY, fail)
    block = staging.allocate(SIZE)
    assert block is not None
    ends = Ends(PLANES[0], staging=staging)
    block.view[:] = value(2)
    _, offset, outside_size, held, _ = ends.worker.put(block.view, block.offset, [], [])
    assert not held
    block.view[0] ^= 1
    got = ends.aggregator.get(ShardRound(1, offset=offset, outside_size=outside_size))
    assert got == block.view
    assert got is not None
    assert not is_lent(got)
    ends.close()
    staging.close()


def test_the_table_has_the_planes_of_the_protocol() -> None:
    """The names and values are those of the protocol's enum, so that reports name each plane as settings do."""
    declared = {f"PLANE_{plane.name.upper()}": plane.kind for plane in PLANES}
    assert {**declared, "PLANE_UNSPECIFIED": 0} == dict(pb.Plane.items())


@KINDS
def test_each_plane_can_be_asked_for(plane: Plane) -> None:
    """PSUM_PLANE and --plane take its name."""
    assert psum.client.Settings.from_environment({"PSUM_PLANE": plane.name}).plane == plane.name
    option = next(option for option in launch.params if option.name == "plane")
    assert isinstance(option.type, click.Choice)
    assert plane.name in option.type.choices


def test_settings_choose_among_planes() -> None:
    """The plane named and the one that always works; all with auto."""
    names = {setting: [plane.name for plane in offered_by(setting)] for setting in ("auto", "shm", "direct", "inline")}
    assert names == {
        "auto": ["shm", "direct", "inline"],
        "shm": ["shm", "inline"],
        "direct": ["direct", "inline"],
        "inline": ["inline"],
    }
