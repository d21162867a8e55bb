"""The job of a relay's group in an elastic job, without owners: what it tells them, and what follows from answers."""

import pytest

from psum.aggregator.core.actions import ConnectUplinks, PartUplinks, ReopenUplinks
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, to_columns, to_rows
from psum.wire.errors import ExcludedError, WorkerLostError
from tests.aggregator.relay.group import ELASTIC, Group, losses, pushed
from tests.aggregator.relay.pure import key, pull, push


@pytest.fixture
def group() -> Group:
    return Group()


def test_a_contribution_says_how_many_ranks_it_counts(group: Group) -> None:
    """Also while nothing has happened: the owner cannot know how many ranks of the group contributed."""
    group.declare(key(0))
    group.push(0, 1)
    assert pushed(group.sent()) == [(0, bytes([3] * 4), 2)]


def test_the_hello_names_the_process_of_each_rank(group: Group) -> None:
    """The owner compares processes rank by rank."""
    said = group.job.hello(0, False)
    assert (list(said.ranks), list(said.incarnations), list(said.generations)) == ([0, 1], [100, 101], [0, 0])
    assert said.elastic == ELASTIC
    # The group has been let in before.
    assert said.resuming


def test_a_round_ends_without_a_lost_rank(group: Group) -> None:
    """The owner hears of the loss before the contribution that lacks the rank; so do the workers before the result."""
    group.declare(key(0))
    group.push(0)
    group.sent()
    group.lose(1)
    messages = group.sent()
    assert [message.WhichOneof("kind") for message, _ in messages] == ["losses", "push"]
    assert losses(messages) == [1]
    assert pushed(messages) == [(0, bytes([1] * 4), 1)]
    group.result(b"abcd", contributors=3)
    received = group.workers[0].received()
    [loss] = [loss for message, _ in received for loss in message.losses.losses]
    assert (loss.rank, loss.in_group) == (1, True)
    kinds = [message.WhichOneof("kind") for message, _ in received]
    assert kinds.index("losses") < kinds.index("result")
    [row] = [row for message, _ in received if message.HasField("result") for row in to_rows(message.result.shards)]
    assert row.contributors == 3
    said = group.job.hello(0, True)
    assert (list(said.ranks), [each.rank for each in said.losses]) == ([0], [1])


def test_what_a_lost_rank_had_contributed_counts(group: Group) -> None:
    """It is in the sum of the group, and counted."""
    group.declare(key(0))
    group.push(1)
    group.lose(1)
    group.push(0)
    assert pushed(group.sent()) == [(0, bytes([3] * 4), 2)]


def test_a_result_is_sent_again_with_its_count(group: Group) -> None:
    """A worker that opens another stream, and lacks the result, gets the count that belongs to it."""
    group.declare(key(0))
    group.push(0, 1)
    group.sent()
    group.result(b"abcd", contributors=3)
    group.end(1)
    group.workers[1] = group.join(1, resuming=True)
    group.declare(key(0), 1)
    group.push(1)
    [row] = [
        row
        for message, _ in group.workers[1].received()
        if message.HasField("result")
        for row in to_rows(message.result.shards)
    ]
    assert row.contributors == 3


def test_an_owner_is_given_back_a_sum_with_its_count(group: Group) -> None:
    """An owner that was started again asks for the sum that the relay keeps."""
    group.declare(key(0))
    group.push(0, 1)
    group.sent()
    group.result(b"abcd", contributors=3)
    group.answer(want=pb.Want(shards=to_columns([ShardRound(7, 0, 0)])))
    [(message, payload)] = group.sent()
    [row] = to_rows(message.restore.shards)
    assert (bytes(payload), row.contributors) == (b"abcd", 3)


def test_losses_elsewhere_are_told_to_the_workers_first(group: Group) -> None:
    """A rank of another group is none of this one, and stays known for the hello to every owner."""
    group.declare(key(0))
    group.push(0, 1)
    group.sent()
    group.answer(losses=pb.Losses(losses=[pb.Loss(rank=3, text="gone")]))
    group.result(b"abcd", contributors=3)
    for rank in (0, 1):
        kinds = [kind for kind in group.workers[rank].kinds() if kind in ("losses", "result")]
        assert kinds == ["losses", "result"]
    assert group.kinds() == []
    assert [loss.rank for loss in group.job.hello(0, True).losses] == [3]
    assert group.job.members.roster.known == (0, 1)
    assert group.job.complete


def test_other_owners_hear_of_a_loss_that_one_has_told() -> None:
    """Owners do not know each other. The relay passes on what one of them says, as a worker does."""
    group = Group(owners=2)
    group.answer(0, losses=pb.Losses(losses=[pb.Loss(rank=3, text="gone")]))
    assert losses(group.sent(0)) == []
    assert losses(group.sent(1)) == [3]


def test_a_rank_that_an_owner_has_lost_is_excluded(group: Group) -> None:
    """Its process is told so, and the others go on."""
    group.answer(losses=pb.Losses(losses=[pb.Loss(rank=1, text="gone")]))
    [fault] = group.workers[1].faults()
    assert fault.code == pb.FAULT_CODE_EXCLUDED
    assert list(group.job.hello(0, True).ranks) == [0]
    assert isinstance(group.refusal(1, resuming=True), ExcludedError)


def test_all_ranks_are_excluded_with_their_relay(group: Group) -> None:
    """An owner goes on without the whole group, because the relay was away for too long."""
    group.answer(fault=ExcludedError("away for too long", ranks=[0, 1]).to_message())
    assert [[fault.code for fault in worker.faults()] for worker in group.workers.values()] == [
        [pb.FAULT_CODE_EXCLUDED]
    ] * 2
    assert group.job.failure is None
    assert any(isinstance(action, PartUplinks) for action in group.relay.told)


def test_the_owners_hear_that_all_ranks_are_lost(group: Group) -> None:
    """The group ends, and not the job of the others: the goodbye names the ranks."""
    group.declare(key(0))
    group.push(0)
    group.lose(0, 1)
    [goodbye] = [action.goodbye for action in group.relay.told if isinstance(action, PartUplinks)]
    assert goodbye.fault.code == pb.FAULT_CODE_WORKER_LOST
    assert list(goodbye.fault.ranks) == [0, 1]
    assert group.relay.groups.jobs == {}


def test_a_relay_that_did_not_run_gives_up_nobody_for_that() -> None:
    """It was started again and stopped at once. A rank that came back meanwhile has not been let in yet."""
    group = Group(ranks=[])
    group.join(0, resuming=True)
    group.relay.tick(6.0)
    group.pass_time(4.75)
    assert group.job.members.roster.unknown == 1
    group.join(1, resuming=True)
    group.pass_time(20)
    assert (group.job.members.roster.known, len(group.job.members.losses)) == ((0, 1), 0)


def test_a_relay_that_did_not_run_gives_up_who_does_not_come_in_the_time_after() -> None:
    """A pause is only left out."""
    group = Group(ranks=[])
    group.join(0, resuming=True)
    group.pass_time(2)
    group.relay.tick(60.0)
    group.pass_time(2.75)
    assert group.job.members.roster.unknown == 1
    group.pass_time(0.5)
    assert group.job.members.roster.unknown == 0


def test_owners_hear_of_a_loss_also_if_nobody_was_here_for_long(group: Group) -> None:
    """The relay did not run meanwhile, for example. It does not forget the group without a word."""
    group.lose(1)
    group.end(0)
    for seconds in (0.25, 40, *(5 * [0.25])):
        group.relay.tick(seconds)
    [goodbye] = [action.goodbye for action in group.relay.told if isinstance(action, PartUplinks)]
    assert list(goodbye.fault.ranks) == [0, 1]


def test_the_last_rank_leaves_after_others_were_lost(group: Group) -> None:
    """The owners are told goodbye, and the rank waits for their farewell."""
    group.lose(1)
    group.say(0, goodbye=pb.Goodbye())
    assert group.job.leaving
    assert "farewell" not in group.workers[0].kinds()
    group.relay.runner.perform(group.job, group.job.parted(group.relay.now))
    assert "farewell" in group.workers[0].kinds()


def test_a_rank_that_has_left_is_named_by_itself(group: Group) -> None:
    """The owners hear its goodbye. An owner that was started again hears it with the hello."""
    group.declare(key(0))
    group.say(1, goodbye=pb.Goodbye())
    [goodbye] = [message.goodbye for message, _ in group.sent() if message.HasField("goodbye")]
    assert list(goodbye.ranks) == [1]
    said = group.job.hello(0, True)
    assert list(said.ranks) == [0]
    assert [(list(each.ranks), each.incarnation, each.level) for each in said.departures] == [([1], 101, 0)]


def test_a_departure_is_told_once() -> None:
    """A relay that was started again tells of a rank that has left in its hello, and says no goodbye for it."""
    group = Group(ranks=[])
    left = pb.Departure(ranks=[1], incarnation=101)
    group.workers[0] = group.join(0, resuming=True, departures=[left])
    group.pass_time(6)
    said = group.job.hello(0, False)
    assert (list(said.ranks), [list(each.ranks) for each in said.departures]) == ([0], [[1]])
    group.connect()
    assert "goodbye" not in group.kinds()


def test_silence_is_a_loss_also_if_no_other_rank_is_there(group: Group) -> None:
    """A worker is stopped whose group has no other rank: the streams to the owners show that the network works."""
    group.lose(1)
    group.pass_time(4.5, silent=[0])
    assert group.job.members.roster.known == (0,)
    group.pass_time(1, silent=[0])
    assert "night" not in group.relay.groups.jobs or not group.job.members.roster.known


def test_nobody_is_lost_while_an_owner_is_out_of_reach() -> None:
    """The relay may be cut off itself. When it reaches all owners again, ranks have as much time as at first."""
    group = Group(owners=2)
    group.job.uplink.disconnected(1)
    group.lose(1, seconds=20)
    assert group.job.members.roster.known == (0, 1)
    [(message, _)] = group.sent(0)
    assert message.HasField("reach")
    assert not message.reach.all
    group.job.uplink.reconnected(1)
    [(message, _)] = group.sent(0)
    assert message.reach.all
    group.pass_time(0.75)
    assert list(group.job.members.roster.known) == [0, 1]
    group.pass_time(0.75)
    assert list(group.job.members.roster.known) == [0]


def test_a_rank_that_was_lost_before_is_not_waited_for() -> None:
    """The relay was started again. The worker that is left tells of the loss in its group."""
    group = Group(ranks=[])
    group.workers[0] = group.join(0, resuming=True, losses=[pb.Loss(rank=1, text="gone", in_group=True)])
    group.connect()
    said = group.job.hello(0, False)
    assert list(said.ranks) == [0]
    assert said.resuming


def test_a_relay_that_was_started_again_passes_on_that_a_loss_is_one_of_its_group() -> None:
    """The worker that has not heard of the loss may be the only one left when the relay is started once more."""
    group = Group(ranks=[], size=3)
    group.workers[2] = group.join(2, resuming=True)
    group.workers[0] = group.join(0, resuming=True, losses=[pb.Loss(rank=1, text="gone", in_group=True)])
    [told] = [message.losses for message, _ in group.workers[2].received() if message.HasField("losses")]
    assert [(loss.rank, loss.in_group) for loss in told.losses] == [(1, True)]


def test_a_loss_in_another_group_leaves_the_group_incomplete() -> None:
    """The relay was started again, and waits for the other rank of its group."""
    group = Group(ranks=[])
    group.workers[0] = group.join(0, resuming=True, losses=[pb.Loss(rank=3, text="gone")])
    assert ConnectUplinks() not in group.relay.told
    group.workers[1] = group.join(1, resuming=True)
    group.connect()
    assert list(group.job.hello(0, False).ranks) == [0, 1]


def test_a_rank_that_was_killed_with_the_relay_is_given_up() -> None:
    """Nobody knows which rank it is. The relay goes on without it after the time-out, and the owners say who it was."""
    group = Group(ranks=[])
    group.workers[0] = group.join(0, resuming=True)
    group.declare(key(0))
    group.push(0)
    group.pass_time(4.75)
    assert ConnectUplinks() not in group.relay.told
    group.pass_time(0.75)
    group.connect()
    assert list(group.job.hello(0, False).ranks) == [0]
    assert pushed(group.sent()) == [(0, bytes([1] * 4), 1)]
    group.answer(losses=pb.Losses(losses=[pb.Loss(rank=1, text="its relay goes on without it")]))
    assert isinstance(group.refusal(1, resuming=True), ExcludedError)


def test_a_rank_that_comes_back_after_it_was_given_up_is_excluded() -> None:
    """The group goes on without it, and the owners are told before they have lost it."""
    group = Group(ranks=[])
    group.workers[0] = group.join(0, resuming=True)
    group.pass_time(5.5)
    group.connect()
    group.sent()
    refusal = group.refusal(1, resuming=True)
    assert isinstance(refusal, ExcludedError)
    assert losses(group.sent()) == [1]


def test_a_key_is_declared_when_the_rank_is_lost_that_had_not_declared_it(group: Group) -> None:
    """Otherwise the owner would never hear of it."""
    group.declare(key(0), 0)
    assert group.kinds() == []
    group.lose(1)
    assert group.kinds() == ["losses", "declare"]


def test_a_sync_is_confirmed_without_a_lost_rank(group: Group) -> None:
    """A rank of another group leaves. Nobody waits for a lost rank to say that it has all sums."""
    group.answer(sync=pb.Sync(number=3))
    [number] = [message.sync.number for message, _ in group.workers[0].received() if message.HasField("sync")]
    group.say(0, synced=pb.Synced(number=number))
    assert group.kinds() == []
    group.lose(1)
    assert group.kinds() == ["losses", "synced"]


def test_a_broadcast_without_its_root_is_forwarded_without_a_value(group: Group) -> None:
    """Rank 0 is lost before it has sent its value. The owner asks for another one, and the relay asks a rank of its
    group that waits for the result."""
    group.declare(key(0, broadcast=True))
    group.say(1, **pull())
    group.sent()
    group.lose(0)
    assert group.kinds() == ["losses", "pull"]
    group.answer(want=pb.Want(shards=to_columns([ShardRound(7, 0, 0)])))
    [want] = [message.want for message, _ in group.workers[1].received() if message.HasField("want")]
    assert [row.round for row in to_rows(want.shards)] == [0]
    group.say(1, payload=b"mine", restore=pb.Restore(shards=to_columns([ShardRound(7, 0, 0, length=4)])))
    [(message, payload)] = group.sent()
    assert ([row.round for row in to_rows(message.restore.shards)], bytes(payload)) == ([0], b"mine")
    group.result(b"mine")
    assert group.workers[1].results() == [b"mine"]


def test_another_rank_is_asked_for_a_value_if_the_first_one_is_lost() -> None:
    """The rank that was asked is lost before it has answered."""
    group = Group(ranks=(0, 1, 2), size=3)
    group.declare(key(0, broadcast=True))
    group.say(1, **pull())
    group.say(2, **pull())
    group.lose(0)
    group.sent()
    group.answer(want=pb.Want(shards=to_columns([ShardRound(7, 0, 0)])))
    assert "want" in group.workers[1].kinds()
    group.lose(1)
    assert "want" in group.workers[2].kinds()


def test_a_rank_is_asked_again_for_its_value_on_a_new_stream(group: Group) -> None:
    """What it was asked on the one before may not have reached it."""
    group.declare(key(0, broadcast=True))
    group.say(1, **pull())
    group.lose(0)
    group.sent()
    group.answer(want=pb.Want(shards=to_columns([ShardRound(7, 0, 0)])))
    assert "want" in group.workers[1].kinds()
    group.end(1)
    group.workers[1] = group.join(1, resuming=True)
    group.pass_time(0.5)
    assert "want" in group.workers[1].kinds()


@pytest.mark.parametrize("arrived", [False, True])
def test_a_rank_is_asked_again_for_its_value_by_an_owner_that_was_started_again(group: Group, arrived: bool) -> None:
    """The value went to the owner's process before, or was dropped because that process had ended."""
    group.declare(key(0, broadcast=True))
    group.say(1, **pull())
    group.lose(0)
    group.sent()
    for again in (False, True):
        if again:
            group.job.uplink.reconnected(0)
        group.answer(want=pb.Want(shards=to_columns([ShardRound(7, 0, 0)])))
        assert "want" in group.workers[1].kinds()
        if not arrived and not again:
            group.job.uplink.reconnected(0)
        group.say(1, payload=b"mine", restore=pb.Restore(shards=to_columns([ShardRound(7, 0, 0, length=4)])))
    assert b"mine" in [bytes(payload) for _, payload in group.sent()]


@pytest.mark.parametrize("ends", ["end", "fail"])
def test_nothing_is_kept_of_an_asked_value_when_the_job_ends(group: Group, ends: str) -> None:
    """The stream to an owner may still be opened again after that, to tell it of the end."""
    group.declare(key(0, broadcast=True))
    group.say(1, **pull())
    group.lose(0)
    group.sent()
    group.answer(want=pb.Want(shards=to_columns([ShardRound(7, 0, 0)])))
    assert group.job.uplink.wanted_values
    uplink = group.job.uplink
    if ends == "end":
        group.job.end()
    else:
        group.job.fail(WorkerLostError("the program has ended", ranks=[1]), group.relay.now)
    uplink.reconnected(0)
    assert not uplink.wanted_values


def test_a_root_that_lives_sends_its_value(group: Group) -> None:
    """Another rank of the group is lost. The value goes on, and the root gets an empty result."""
    group.declare(key(0, broadcast=True))
    group.say(0, **push(b"root"))
    group.lose(1)
    assert [value for _, value, _ in pushed(group.sent())] == [b"root"]
    group.answer(result=pb.Result(shards=to_columns([ShardRound(7, 0, 0)])))
    assert group.workers[0].results() == [b""]


def test_a_zombie_that_came_back_first_makes_the_group_begin_again() -> None:
    """What a new relay process has learned of rounds may stem from the lost rank. It forgets the keys, and ends the
    streams of the others, which come back."""
    group = Group(ranks=[])
    group.workers[1] = group.join(1, resuming=True)
    group.declare(key(0, round=3), 1)
    group.workers[0] = group.join(0, resuming=True, losses=[pb.Loss(rank=1, text="gone", in_group=True)])
    assert group.workers[1].faults()[0].code == pb.FAULT_CODE_EXCLUDED
    assert group.job.keys == {}
    assert group.job.uplink.keys == {}
    group.workers[0] = group.join(0, resuming=True)
    group.declare(key(0, round=9), 0)
    group.connect()
    (told, _), (message, _) = group.sent()
    assert told.HasField("losses")
    assert message.declare.keys[0].shards[0].round == 9


def test_a_group_that_has_connected_begins_again_on_new_streams(group: Group) -> None:
    """An owner tells of the loss of a rank that had come back to this process, before any round was completed here."""
    group = Group(ranks=[])
    for rank in (0, 1):
        group.workers[rank] = group.join(rank, resuming=True)
    group.declare(key(0, round=3))
    group.connect()
    group.sent()
    group.answer(losses=pb.Losses(losses=[pb.Loss(rank=1, text="gone")]))
    assert ReopenUplinks() in group.relay.told
    assert group.job.uplink.next_message(0) is None


def test_keys_of_some_ranks_wait_for_those_of_the_group() -> None:
    """A key of ranks 0 and 3: of this group only rank 0 uses it. The owners are told the list."""
    group = Group()
    declared = key(0)
    declared.ranks[:] = [0, 3]
    group.declare(declared, 0)
    group.push(0)
    messages = group.sent()
    assert list(messages[0][0].declare.keys[0].ranks) == [0, 3]
    assert pushed(messages) == [(0, bytes([1] * 4), 1)]


def test_what_is_under_way_of_a_key_is_let_go_with_the_last_rank_that_uses_it() -> None:
    """No owner answers it. It would count against the credit for ever, and nothing else could be sent."""
    group = Group()
    declared = key(0)
    declared.ranks[:] = [0, 3]
    group.declare(declared, 0)
    group.push(0)
    assert pushed(group.sent()) == [(0, bytes([1] * 4), 1)]
    window = group.job.uplink.windows[0]
    assert window.scheduler.under_way_bytes == 4
    group.lose(0)
    assert window.scheduler.under_way_bytes == 0
    # Ranks of other groups may go on with the key.
    assert group.kinds() == ["losses"]
    group.result(b"late")
    group.job.uplink.reconnected(0)
    assert not {"abort", "declare"}.intersection(group.kinds())


@pytest.mark.parametrize("closed", [False, True])
def test_a_relay_that_has_not_reached_the_owners_yet_loses_nobody(closed: bool) -> None:
    """It was started again, waits for the other rank, and cannot tell whether it is cut off itself."""
    group = Group(ranks=[])
    group.workers[0] = group.join(0, resuming=True)
    group.end(0, closed=closed)
    group.pass_time(20)
    assert group.job.losses(group.relay.now) == []
    group.connect()
    assert list(group.job.hello(0, False).ranks) == [0]
    job = group.job
    group.pass_time(6)
    assert [loss.rank for loss in job.losses(group.relay.now)] == [0]
